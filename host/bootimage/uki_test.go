package bootimage

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"testing"
)

// fakeUKI returns a PE program with one section.
func fakeUKI(section string, content []byte) []byte {
	const peOffset, coffSize, sectionSize = 0x80, 20, 40
	offset := peOffset + 4 + coffSize + sectionSize
	b := make([]byte, offset)
	le := binary.LittleEndian
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], peOffset)
	copy(b[peOffset:], "PE\x00\x00")
	coff := b[peOffset+4:]
	le.PutUint16(coff, 0x8664) // x86-64
	le.PutUint16(coff[2:], 1)  // sections
	header := coff[coffSize:]
	copy(header[:8], section)
	le.PutUint32(header[8:], uint32(len(content)))  // size in memory
	le.PutUint32(header[16:], uint32(len(content))) // size in the file
	le.PutUint32(header[20:], uint32(offset))
	return append(b, content...)
}

func TestImageIn(t *testing.T) {
	kernel := fakeBzImage("6.1.0 (x)", packGzip(t, fakeVMLinux()))
	stub := bytes.Clone(kernel) // a bzImage that firmware can also start
	copy(stub, "MZ")
	for _, c := range []struct {
		name       string
		file, want []byte
		err        string
	}{
		{"bzImage", kernel, kernel, ""},
		{"bzImage with an EFI stub", stub, stub, ""},
		{"unified kernel image", fakeUKI(".linux", kernel), kernel, ""},
		{"a PE program of another kind", fakeUKI(".text", kernel), nil, "no section .linux"},
		{"truncated", fakeUKI(".linux", kernel)[:len(kernel)], nil, "truncated"},
		{"not a PE program", append([]byte("MZ"), make([]byte, 1000)...), nil, "damaged"},
		{"short", []byte("MZ"), []byte("MZ"), ""},
		{"empty", nil, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			image, err := imageIn(bytes.NewReader(c.file), int64(len(c.file)))
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error %v, want one with %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(image); err != nil || !bytes.Equal(got, c.want) {
				t.Errorf("%d bytes, %v; want %d", len(got), err, len(c.want))
			}
		})
	}
}

// FuzzImageIn: a damaged kernel image causes an error and nothing else.
func FuzzImageIn(f *testing.F) {
	f.Add(fakeUKI(".linux", fakeBzImage("6.1.0 (x)", []byte("payload"))))
	f.Add(fakeUKI(".text", nil))
	f.Fuzz(func(t *testing.T, file []byte) {
		image, err := imageIn(bytes.NewReader(file), int64(len(file)))
		if err != nil {
			return
		}
		if b, err := io.ReadAll(image); err != nil || int64(len(b)) != image.Size() {
			t.Fatalf("%d bytes of %d: %v", len(b), image.Size(), err)
		}
	})
}
