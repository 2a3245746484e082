package stdio

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/huskvm/husk/protocol"
)

func TestKindOf(t *testing.T) {
	dir := t.TempDir()
	open := func(path string, flags int) *os.File {
		t.Helper()
		f, err := os.OpenFile(path, flags, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	file := func(c any, err error) *os.File {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.(io.Closer).Close() })
		f, err := c.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	path := filepath.Join(dir, "file")
	socket := filepath.Join(dir, "socket")
	tests := map[string]struct {
		file *os.File
		want protocol.DescriptorKind // 0: refused
	}{
		"to write":      {open(path, os.O_CREATE|os.O_WRONLY), protocol.DescriptorOutput},
		"to read":       {open(path, os.O_RDONLY), protocol.DescriptorInput},
		"both":          {open(path, os.O_RDWR), protocol.DescriptorBoth},
		"device":        {open(os.DevNull, os.O_RDWR), protocol.DescriptorBoth},
		"directory":     {open(dir, os.O_RDONLY), 0},
		"tcp listener":  {file(net.Listen("tcp4", "127.0.0.1:0")), protocol.DescriptorTCP4},
		"unix listener": {file(net.Listen("unix", socket)), protocol.DescriptorUnix},
		"connection":    {file(net.Dial("unix", socket)), protocol.DescriptorBoth},
		"datagrams":     {file(net.ListenPacket("udp4", "127.0.0.1:0")), 0},
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for _, f := range []struct {
		file *os.File
		want protocol.DescriptorKind
	}{{r, protocol.DescriptorInput}, {w, protocol.DescriptorOutput}} {
		tests["pipe "+string(rune(f.want))] = struct {
			file *os.File
			want protocol.DescriptorKind
		}{f.file, f.want}
	}
	for name, tc := range tests {
		got, err := KindOf(tc.file)
		if got != tc.want || (err != nil) != (tc.want == 0) {
			t.Errorf("%s: %q, %v; want %q", name, got, err, tc.want)
		}
	}
}
