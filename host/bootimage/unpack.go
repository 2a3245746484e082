package bootimage

import (
	"bytes"
	"compress/bzip2"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"
)

const (
	// maxVMLinux bounds the size of an unpacked kernel, in bytes. Kernels of distributions have
	// 40 to 90 MiB; one with debugging symbols may be too large.
	maxVMLinux = 512 << 20

	// maxDictionary bounds the memory for a decompressor's window, in bytes. Kernels use up to
	// 128 MiB (zstd -22, and xz since Linux 6.12).
	maxDictionary = 256 << 20
)

var errTooLarge = errors.New("unpacks to more than the limit")

// format is a compression format. It is recognized by its first bytes.
type format struct {
	name  string
	magic string
	open  func(io.Reader) (io.ReadCloser, error)
}

// formats are the formats in which Linux can compress an x86 kernel or a module.
var formats = []format{
	{"gzip", "\x1f\x8b", openGzip},
	{"xz", "\xfd7zXZ\x00", openXZ},
	{"zstd", "\x28\xb5\x2f\xfd", openZstd},
	{"lz4", "\x02\x21\x4c\x18", openLZ4}, // the legacy frame format (lz4 -l)
	{"lz4", "\x04\x22\x4d\x18", openLZ4}, // the present frame format, in which users may compress modules
	{"bzip2", "BZh", openBzip2},
	{"lzo", lzopMagic, openLzop},
	{"lzma", "\x5d\x00\x00", openLZMA},
}

func detect(head []byte) (format, error) {
	for _, f := range formats {
		if bytes.HasPrefix(head, []byte(f.magic)) {
			return f, nil
		}
	}
	return format{}, fmt.Errorf("unknown compression format (magic bytes % x); known are gzip, xz, zstd, lz4, bzip2, lzma, lzo",
		head[:min(8, len(head))])
}

func openGzip(r io.Reader) (io.ReadCloser, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	z.Multistream(false)
	return z, nil
}

// openXZ uses a port of XZ Embedded, because kernels are packed with the x86 BCJ filter, which
// ulikunitz/xz does not support.
func openXZ(r io.Reader) (io.ReadCloser, error) {
	z, err := xz.NewReader(r, maxDictionary)
	if err != nil {
		return nil, err
	}
	z.Multistream(false)
	return io.NopCloser(z), nil
}

func openZstd(r io.Reader) (io.ReadCloser, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxDictionary), zstd.WithDecoderMaxMemory(maxVMLinux))
	if err != nil {
		return nil, err
	}
	return z.IOReadCloser(), nil
}

func openLZ4(r io.Reader) (io.ReadCloser, error) { return io.NopCloser(lz4.NewReader(r)), nil }

func openBzip2(r io.Reader) (io.ReadCloser, error) { return io.NopCloser(bzip2.NewReader(r)), nil }

func openLZMA(r io.Reader) (io.ReadCloser, error) {
	z, err := lzma.ReaderConfig{DictCap: maxDictionary}.NewReader(r)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(z), nil
}

// decompress writes the unpacked content of r to w and returns its size. It returns an error if
// that is more than limit bytes. head is the first bytes of r; they are still in r.
func decompress(w io.Writer, r io.Reader, head []byte, limit int64) (n int64, err error) {
	f, err := detect(head)
	if err != nil {
		return 0, err
	}
	// The decompressors are third-party code that reads untrusted bytes. A panic in one becomes
	// an error.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("unpack %s: damaged data: %v", f.name, p)
		}
	}()
	z, err := f.open(r)
	if err != nil {
		return 0, fmt.Errorf("unpack %s: %w", f.name, unexpected(err))
	}
	defer z.Close() // frees memory; everything has been read, so there is no error
	n, err = io.Copy(w, io.LimitReader(z, limit+1))
	if err != nil {
		return n, fmt.Errorf("unpack %s: %w", f.name, unexpected(err))
	}
	if n > limit {
		return n, fmt.Errorf("unpack %s: %w of %d bytes", f.name, errTooLarge, limit)
	}
	return n, nil
}

// unexpected replaces io.EOF by an error that says that the file is truncated.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, xz.ErrBuf) {
		return fmt.Errorf("truncated data: %w", err)
	}
	return err
}

// unpackKernel writes the ELF vmlinux in the kernel image r, of size bytes, to w. The image may
// be a bzImage, or an ELF file, which is copied. consumed is called for every piece of the
// packed kernel that was read.
func unpackKernel(w io.Writer, r io.ReaderAt, size int64, consumed func(n int, of int64) error) error {
	head := make([]byte, 8)
	if n, err := r.ReadAt(head, 0); err != nil {
		return fmt.Errorf("read kernel: %d bytes only: %w", n, err)
	}
	if bytes.HasPrefix(head, elfMagic) {
		if size > maxVMLinux {
			return fmt.Errorf("ELF file of %d MiB is over the limit of %d: strip it of its debugging symbols", size>>20, maxVMLinux>>20)
		}
		_, err := io.Copy(w, &countingReader{r: io.NewSectionReader(r, 0, size), total: size, count: consumed})
		return err
	}
	img, err := parseBzImage(r, size)
	if err != nil {
		return err
	}
	return img.unpack(w, r, consumed)
}

// unpack writes the unpacked payload of the bzImage to w.
func (img *bzImage) unpack(w io.Writer, r io.ReaderAt, consumed func(n int, of int64) error) error {
	if img.PayloadLength < 16 {
		return fmt.Errorf("bzImage with a payload of %d bytes", img.PayloadLength)
	}
	head, tail := make([]byte, 16), make([]byte, 4)
	if _, err := r.ReadAt(head, img.PayloadOffset); err != nil {
		return fmt.Errorf("read payload: %w", err)
	}
	if _, err := r.ReadAt(tail, img.PayloadOffset+img.PayloadLength-4); err != nil {
		return fmt.Errorf("read payload: %w", err)
	}
	// The kernel's build (arch/x86/boot/compressed/mkpiggy.c) puts the unpacked size at the end
	// of each payload: gzip's own trailer, or four bytes for other formats. The decompressors
	// must not see these four bytes, which they would take for another stream.
	length := img.PayloadLength
	if !bytes.HasPrefix(head, []byte("\x1f\x8b")) {
		length -= 4
	}
	want := int64(binary.LittleEndian.Uint32(tail))
	if want > maxVMLinux {
		return fmt.Errorf("the kernel says it %w of %d MiB (%d bytes)", errTooLarge, maxVMLinux>>20, want)
	}
	payload := &countingReader{
		r: io.NewSectionReader(r, img.PayloadOffset, length), total: length, count: consumed,
	}
	n, err := decompress(w, payload, head, want)
	if errors.Is(err, errTooLarge) {
		return fmt.Errorf("damaged payload: it %w of %d bytes its trailer says", errTooLarge, want)
	}
	if err != nil {
		return err
	}
	if n != want {
		return fmt.Errorf("damaged payload: unpacked to %d bytes, its trailer says %d", n, want)
	}
	return nil
}

// countingReader reports each read. The function that it calls can end the reading by an error.
type countingReader struct {
	r     io.Reader
	total int64
	count func(n int, of int64) error
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.count != nil {
		if cerr := c.count(n, c.total); cerr != nil {
			return n, cerr
		}
	}
	return n, err
}
