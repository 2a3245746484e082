package bootimage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	ulixz "github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

func pack(t testing.TB, b []byte, open func(io.Writer) (io.WriteCloser, error)) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := open(&out)
	if err == nil {
		_, err = w.Write(b)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func packGzip(t testing.TB, b []byte) []byte {
	return pack(t, b, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil })
}

func packXZ(t testing.TB, b []byte) []byte {
	return pack(t, b, func(w io.Writer) (io.WriteCloser, error) { return ulixz.NewWriter(w) })
}

func packZstd(t testing.TB, b []byte) []byte {
	return pack(t, b, func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) })
}

// packings returns bzImage payloads in all formats, made as the kernel's build makes them and
// by Go packages.
func packings(t testing.TB) map[string][]byte {
	elf := fakeVMLinux()
	m := map[string][]byte{
		"gzip":      packGzip(t, elf),
		"xz":        withSize(packXZ(t, elf), len(elf)),
		"zstd":      withSize(packZstd(t, elf), len(elf)),
		"lz4 frame": withSize(pack(t, elf, func(w io.Writer) (io.WriteCloser, error) { return lz4.NewWriter(w), nil }), len(elf)),
		"lz4 legacy": withSize(pack(t, elf, func(w io.Writer) (io.WriteCloser, error) {
			z := lz4.NewWriter(w)
			return z, z.Apply(lz4.LegacyOption(true))
		}), len(elf)),
		"lzma": withSize(pack(t, elf, func(w io.Writer) (io.WriteCloser, error) { return lzma.NewWriter(w) }), len(elf)),
	}
	for _, name := range []string{"vmlinux.xz", "vmlinux.bz2", "vmlinux.lzo", "vmlinux.lz4", "vmlinux.lzma", "vmlinux.zst"} {
		m[name] = withSize(fixture(t, name), len(elf))
	}
	return m
}

func unpackBytes(b []byte) ([]byte, error) {
	var out bytes.Buffer
	err := unpackKernel(&out, bytes.NewReader(b), int64(len(b)), nil)
	return out.Bytes(), err
}

func TestUnpackKernel(t *testing.T) {
	elf := fakeVMLinux()
	images := map[string][]byte{"ELF": elf}
	for name, payload := range packings(t) {
		images[name] = fakeBzImage(fakeRelease+" (x)", payload)
	}
	for name, img := range images {
		t.Run(name, func(t *testing.T) {
			got, err := unpackBytes(img)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, elf) {
				t.Fatalf("unpacked to %d bytes that differ from the %d packed", len(got), len(elf))
			}
			if err := checkVMLinux(bytes.NewReader(got)); err != nil {
				t.Error(err)
			}
			if r, err := readRelease(bytes.NewReader(img), int64(len(img))); err != nil || r != fakeRelease {
				t.Errorf("release %q, %v", r, err)
			}
		})
	}
}

// TestFixtureUsesBCJ: the fixture really uses the x86 filter, which was the reason for the
// choice of the xz library.
func TestFixtureUsesBCJ(t *testing.T) {
	r, err := ulixz.NewReader(bytes.NewReader(fixture(t, "vmlinux.xz")))
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	if err == nil {
		t.Fatal("a library without BCJ filters can read testdata/vmlinux.xz")
	}
}

// TestUnpackTruncated: an image that is cut anywhere, also in the kernel's own trailer, is an
// error and never a partial kernel.
func TestUnpackTruncated(t *testing.T) {
	size := len(fakeVMLinux())
	for name, payload := range packings(t) {
		t.Run(name, func(t *testing.T) {
			for _, keep := range []int{0, 16, len(payload) / 2, len(payload) - 5} {
				cut := payload[:keep]
				if name != "gzip" || keep < 16 {
					cut = withSize(cut, size)
				}
				if _, err := unpackBytes(fakeBzImage("6.1 x", cut)); err == nil {
					t.Errorf("%d of %d bytes: no error", keep, len(payload))
				}
				img := fakeBzImage("6.1 x", payload)
				_, err := unpackBytes(img[:len(img)-128-len(payload)+keep])
				if err == nil || !strings.Contains(err.Error(), "truncated") {
					t.Errorf("file cut at byte %d of the payload: %v", keep, err)
				}
			}
		})
	}
}

func TestUnpackRefuses(t *testing.T) {
	elf := fakeVMLinux()
	good := fakeBzImage("6.1 x", packGzip(t, elf))
	edit := func(f func(b []byte)) []byte {
		b := bytes.Clone(good)
		f(b)
		return b
	}
	le := binary.LittleEndian
	for _, c := range []struct {
		name, want string
		img        []byte
	}{
		{"no kernel", "neither a bzImage nor an ELF file (it starts with 68 65 6c 6c)", append([]byte("hello"), make([]byte, 4096)...)},
		{"empty", "read kernel", nil},
		{"short", "neither a bzImage", []byte("MZ......")},
		{"old protocol", "boot protocol 2.07 is older than 2.08", edit(func(b []byte) { le.PutUint16(b[offBootVersion:], 0x207) })},
		{"no payload", "without a payload", edit(func(b []byte) { le.PutUint32(b[offPayloadLength:], 0) })},
		{"payload beyond the end", "truncated", edit(func(b []byte) { le.PutUint32(b[offPayloadOffset:], 0xffffffff) })},
		{"unknown format", "unknown compression format (magic bytes de ad be ef", fakeBzImage("6.1", withSize(append([]byte{0xde, 0xad, 0xbe, 0xef}, make([]byte, 64)...), 64))},
		{"too large", "limit of 512 MiB", fakeBzImage("6.1", withSize(packZstd(t, elf), maxVMLinux+1))},
		{"larger than said", "damaged payload", fakeBzImage("6.1", withSize(packZstd(t, elf), len(elf)-1))},
		{"smaller than said", "damaged payload", fakeBzImage("6.1", withSize(packZstd(t, elf), len(elf)+1))},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := unpackBytes(c.img)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestUnpackStopsWhenTold(t *testing.T) {
	stop := errors.New("stop")
	img := fakeBzImage("6.1", packGzip(t, fakeVMLinux()))
	err := unpackKernel(io.Discard, bytes.NewReader(img), int64(len(img)), func(int, int64) error { return stop })
	if !errors.Is(err, stop) {
		t.Errorf("error %v", err)
	}
}

// TestDecompressLimit: a few kilobytes that unpack to many megabytes use no more memory than
// the limit.
func TestDecompressLimit(t *testing.T) {
	bomb := make([]byte, 8<<20)
	for name, b := range map[string][]byte{"gzip": packGzip(t, bomb), "xz": packXZ(t, bomb), "zstd": packZstd(t, bomb)} {
		var out bytes.Buffer
		_, err := decompress(&out, bytes.NewReader(b), b, 1<<20)
		if !errors.Is(err, errTooLarge) || out.Len() > 1<<20+1 {
			t.Errorf("%s: %d bytes, error %v", name, out.Len(), err)
		}
	}
}

func TestCheckVMLinux(t *testing.T) {
	edit := func(f func(b []byte)) []byte {
		b := fakeVMLinux()
		f(b)
		return b
	}
	const note = 64 + 56
	for _, c := range []struct {
		name, want string
		elf        []byte
	}{
		{"whole", "", fakeVMLinux()},
		{"other note", "CONFIG_PVH", edit(func(b []byte) { b[note+8] = 17 })},
		{"other owner", "CONFIG_PVH", edit(func(b []byte) { b[note+12] = 'Y' })},
		{"name too long", "CONFIG_PVH", edit(func(b []byte) { b[note+3] = 0xff })},
		{"no notes", "CONFIG_PVH", edit(func(b []byte) { b[64] = 1 })},
		{"notes beyond the end", "truncated", edit(func(b []byte) { b[64+8+2] = 0xff })},
		{"arm64", "not a 64-bit x86 kernel", edit(func(b []byte) { b[18] = 183 })},
		{"not ELF", "not an ELF file", []byte("#!/bin/sh\n")},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := checkVMLinux(bytes.NewReader(c.elf))
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestMissingBuiltins(t *testing.T) {
	if m, err := missingBuiltins(bytes.NewReader(fakeVMLinux())); err != nil || m != nil {
		t.Errorf("missing %v, %v", m, err)
	}
	// The marker is spread over two reads.
	big := make([]byte, 3<<20)
	copy(big[1<<20-5:], "virtio-mmio\x00")
	copy(big[2<<20:], "9pnet_virtio\x00")
	m, err := missingBuiltins(bytes.NewReader(big))
	if err != nil || len(m) != 1 || m[0] != "virtio_console" {
		t.Errorf("missing %v, %v", m, err)
	}
}

func TestFindBanner(t *testing.T) {
	far := bytes.Repeat([]byte{'x'}, 3<<20)
	copy(far[1<<20-20:], "Linux version 6.12.95+deb12-amd64 (a@b)")
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"Linux version 5.4.0 x", "5.4.0"},
		{"Linux version %s\x00Linux version 5.4.0 x", "5.4.0"},
		{"Linux version ../../etc x", ""},
		{"Linux version 5.4.0", ""}, // without something after it, it may be cut off
		{string(far), "6.12.95+deb12-amd64"},
	} {
		t.Run(c.in, func(t *testing.T) {
			got, err := findBanner(strings.NewReader(c.in))
			if err != nil || got != c.want {
				t.Errorf("%.40q: %q, %v; want %q", c.in, got, err, c.want)
			}
		})
	}
}

func FuzzUnpackKernel(f *testing.F) {
	for _, p := range packings(f) {
		f.Add(fakeBzImage("6.1 x", p))
	}
	f.Add(fakeVMLinux())
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := readRelease(bytes.NewReader(b), int64(len(b))); err == nil && r != "" && !validRelease(r) {
			t.Errorf("release %q", r)
		}
		img, err := parseBzImage(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		if img.PayloadOffset < 0 || img.PayloadLength <= 0 || img.PayloadOffset+img.PayloadLength > int64(len(b)) {
			t.Fatalf("payload %d+%d of %d bytes", img.PayloadOffset, img.PayloadLength, len(b))
		}
		if end := img.PayloadOffset + img.PayloadLength; binary.LittleEndian.Uint32(b[end-min(4, end):]) > 1<<20 {
			return // too slow
		}
		_, _ = unpackBytes(b)
	})
}

func FuzzDecompress(f *testing.F) {
	for _, p := range packings(f) {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var out bytes.Buffer
		if n, err := decompress(&out, bytes.NewReader(b), b, 1<<18); err == nil && (n > 1<<18 || int(n) != out.Len()) {
			t.Errorf("%d bytes, %d said", out.Len(), n)
		}
	})
}

func FuzzCheckVMLinux(f *testing.F) {
	f.Add(fakeVMLinux()[:512])
	f.Fuzz(func(t *testing.T, b []byte) { _ = checkVMLinux(bytes.NewReader(b)) })
}
