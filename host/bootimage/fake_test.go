package bootimage

import (
	"bytes"
	"encoding/binary"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "rewrite testdata (see its README)")

const fakeRelease = "6.1.0-99-test"

// fakeVMLinux returns an ELF file that resembles a kernel: it has a PVH note, a banner, and
// calls, which the x86 filter of xz rewrites. It is the same in every run.
func fakeVMLinux() []byte {
	var b bytes.Buffer
	note := make([]byte, 0, 24)
	for _, v := range []uint32{4, 4, notePhys32Entry} {
		note = binary.LittleEndian.AppendUint32(note, v)
	}
	note = append(note, "Xen\x00"...)
	note = binary.LittleEndian.AppendUint32(note, 0x1000000)

	b.WriteString("\x7fELF\x02\x01\x01")
	b.Write(make([]byte, 9))
	const headers = 64 + 56
	for _, v := range []any{
		uint16(2), uint16(62), uint32(1), uint64(0x1000000), uint64(64), uint64(0),
		uint32(0), uint16(64), uint16(56), uint16(1), uint16(64), uint16(0), uint16(0),
		// One program header: PT_NOTE, directly after it.
		uint32(4), uint32(4), uint64(headers), uint64(0), uint64(0), uint64(len(note)), uint64(len(note)), uint64(4),
	} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	b.Write(note)
	b.WriteString("Linux version " + fakeRelease + " (husk@test) #1 SMP\n\x00")
	for _, m := range builtinMarkers {
		b.WriteString(m.marker)
	}
	for i := range uint32(1000) {
		b.WriteByte(0xe8) // a relative call, always of the same target
		target := 0x00100000 - (uint32(b.Len()) + 4)
		b.Write(binary.LittleEndian.AppendUint32(nil, target))
		b.Write(binary.LittleEndian.AppendUint32(nil, i*2654435761))
	}
	return b.Bytes()
}

// withSize appends what the kernel's build appends to every format except gzip.
func withSize(packed []byte, size int) []byte {
	return binary.LittleEndian.AppendUint32(bytes.Clone(packed), uint32(size))
}

// fakeBzImage returns a setup header followed by payload.
func fakeBzImage(version string, payload []byte) []byte {
	const sectors = 2
	b := make([]byte, (sectors+1)*512)
	b[offSetupSects] = sectors
	copy(b[offBootMagic:], "HdrS")
	le := binary.LittleEndian
	le.PutUint16(b[offBootVersion:], 0x20f)
	le.PutUint16(b[offKernelVersion:], 0x200)
	copy(b[0x400:], version+"\x00")
	le.PutUint32(b[offPayloadOffset:], 64)
	le.PutUint32(b[offPayloadLength:], uint32(len(payload)))
	b = append(b, make([]byte, 64)...) // stands for the decompressor's code
	b = append(b, payload...)
	return append(b, make([]byte, 128)...) // stands for what follows the payload
}

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestFixtures writes testdata with the flag -update. Otherwise it checks that testdata exists.
func TestFixtures(t *testing.T) {
	tools := map[string][]string{
		"vmlinux.xz":   {"xz", "--check=crc32", "--x86", "--lzma2=dict=32MiB", "-c"},
		"vmlinux.bz2":  {"bzip2", "-9", "-c"},
		"vmlinux.lzo":  {"lzop", "-9", "-c"},
		"vmlinux.lz4":  {"lz4", "-9", "-l", "-c"},
		"vmlinux.lzma": {"lzma", "-9", "-c"},
		"vmlinux.zst":  {"zstd", "-22", "--ultra", "-c"},
	}
	if *update {
		in := filepath.Join(t.TempDir(), "vmlinux")
		if err := os.WriteFile(in, fakeVMLinux(), 0o600); err != nil {
			t.Fatal(err)
		}
		for name, argv := range tools {
			out, err := exec.Command(argv[0], append(argv[1:], in)...).Output()
			if err != nil {
				t.Fatalf("%v: %v", argv, err)
			}
			if err := os.WriteFile(filepath.Join("testdata", name), out, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name := range tools {
		if len(fixture(t, name)) == 0 {
			t.Errorf("%s is empty", name)
		}
	}
}
