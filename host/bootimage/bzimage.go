package bootimage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Offsets of fields of the setup header from the start of the image
// (Documentation/arch/x86/boot.rst). All fields are little endian.
const (
	offSetupSects    = 0x1f1 // u8, setup code in sectors of 512 bytes; 0 means 4
	offBootMagic     = 0x202 // "HdrS"
	offBootVersion   = 0x206 // u16, e.g. 0x020f
	offKernelVersion = 0x20e // u16, offset of a string from 0x200; 0 means none
	offPayloadOffset = 0x248 // u32, from the end of the setup code (since 2.08)
	offPayloadLength = 0x24c // u32
	setupHeaderEnd   = 0x250

	maxSetup = (255 + 1) * 512 // setup_sects is one byte

	maxReleaseLength = 64 // __NEW_UTS_LEN, what uname -r can hold
)

var elfMagic = []byte("\x7fELF")

// bzImage holds what the setup header says.
type bzImage struct {
	Release       string // "" when the header names none
	PayloadOffset int64  // in bytes from the start of the image
	PayloadLength int64
}

// parseBzImage reads the setup header of a bzImage of size bytes.
func parseBzImage(r io.ReaderAt, size int64) (*bzImage, error) {
	setup := make([]byte, min(size, maxSetup))
	if _, err := r.ReadAt(setup, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read setup header: %w", err)
	}
	if len(setup) < setupHeaderEnd || !bytes.Equal(setup[offBootMagic:offBootMagic+4], []byte("HdrS")) {
		return nil, fmt.Errorf("neither a bzImage nor an ELF file (it starts with % x)", setup[:min(4, len(setup))])
	}
	u16 := func(off int) int { return int(binary.LittleEndian.Uint16(setup[off:])) }
	u32 := func(off int) int64 { return int64(binary.LittleEndian.Uint32(setup[off:])) }

	if v := u16(offBootVersion); v < 0x208 {
		return nil, fmt.Errorf("boot protocol %d.%02d is older than 2.08 (Linux 2.6.26) and does not say where the kernel is",
			v>>8, v&0xff)
	}
	sectors := int64(setup[offSetupSects])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors + 1) * 512
	img := &bzImage{
		PayloadOffset: start + u32(offPayloadOffset),
		PayloadLength: u32(offPayloadLength),
	}
	if img.PayloadLength == 0 {
		return nil, errors.New("bzImage without a payload")
	}
	if end := img.PayloadOffset + img.PayloadLength; end > size {
		return nil, fmt.Errorf("truncated bzImage: the payload ends at byte %d of %d", end, size)
	}
	if off := u16(offKernelVersion); off != 0 && 0x200+off < len(setup) {
		img.Release = releaseOf(setup[0x200+off:])
	}
	return img, nil
}

// releaseOf returns the first word of a version string such as "6.1.0-9-amd64
// (debian-kernel@...) #1 SMP ...". It returns "" if that word is no valid release.
func releaseOf(b []byte) string {
	b = b[:min(len(b), maxReleaseLength+1)]
	n := bytes.IndexAny(b, " \x00\n")
	if n < 0 {
		return ""
	}
	if s := string(b[:n]); validRelease(s) {
		return s
	}
	return ""
}

// validRelease says whether a release may be used as the name of a directory. It comes from a
// file and becomes part of a path.
func validRelease(s string) bool {
	if s == "" || len(s) > maxReleaseLength || s[0] < '0' || s[0] > '9' {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && !strings.ContainsRune("._+~-", r)
	}) < 0
}

var versionBanner = []byte("Linux version ")

// findBanner returns the release in the first "Linux version RELEASE ..." of r, "" if there is
// none.
func findBanner(r io.Reader) (string, error) {
	const keep = 128 // longer than the beginning of any banner
	buf := make([]byte, 0, 1<<20)
	for {
		n, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		last := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !last {
			return "", fmt.Errorf("read kernel: %w", err)
		}
		for rest := buf; ; {
			i := bytes.Index(rest, versionBanner)
			if i < 0 {
				break
			}
			rest = rest[i+len(versionBanner):]
			if release := releaseOf(rest); release != "" {
				return release, nil
			}
		}
		if last {
			return "", nil
		}
		// The end of the last piece is kept, because a banner may be spread over two pieces.
		buf = append(buf[:0], buf[len(buf)-min(keep, len(buf)):]...)
	}
}
