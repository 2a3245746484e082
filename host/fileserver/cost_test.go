package fileserver

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// exchange is one message that is sent again and again.
func (c *client) exchange(request []byte, reply []byte) func() {
	return func() {
		if n := c.server.Handle(request, reply); n == 0 || order.Uint32(reply[4:]) != 0 {
			c.t.Fatalf("operation %d: error %d", order.Uint32(request[4:]), -int32(order.Uint32(reply[4:])))
		}
	}
}

// exchanges are the frequent messages.
func exchanges(t testing.TB, size int) (names []string, sends map[string]func()) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), strings.Repeat("x", size))
	c := newClient(t, dir, nil)
	node := c.lookup(rootID, "file")
	fh := c.open(node, unix.O_RDWR)
	reply := make([]byte, size+4096)
	messages := map[string][]byte{
		"getattr": c.request(opGetattr, node, make([]byte, 16)),
		"lookup":  c.request(opLookup, rootID, text("file")),
		"read":    c.request(opRead, node, u64(fh), u64(0), u32(uint32(size)), make([]byte, 20)),
		"write":   c.request(opWrite, node, u64(fh), u64(0), u32(uint32(size)), u32(writeKillPrivileges), make([]byte, 16), make([]byte, size)),
		"xattr":   c.request(opListxattr, node, u32(200), u32(0)),
		"create":  slices.Concat(c.request(opMkdir, rootID, u32(0o755), u32(0), text("dir"))),
	}
	sends = map[string]func(){}
	for name, m := range messages {
		names = append(names, name)
		sends[name] = c.exchange(m, reply)
	}
	remove := c.exchange(c.request(opRmdir, rootID, text("dir")), reply)
	create := sends["create"]
	sends["create"] = func() { create(); remove() }
	slices.Sort(names)
	return names, sends
}

// Data goes between the message and the file without memory of the server's.
func TestTransferAllocatesNothing(t *testing.T) {
	_, sends := exchanges(t, 4096)
	for _, name := range []string{"read", "write"} {
		// The pool of calls may be emptied meanwhile.
		if n := testing.AllocsPerRun(200, sends[name]); n >= 1 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkHandle(b *testing.B) {
	b.Run("bare-mkdir", func(b *testing.B) {
		dir := filepath.Join(b.TempDir(), "dir")
		for b.Loop() {
			if err := unix.Mkdir(dir, 0o755); err != nil {
				b.Fatal(err)
			}
			unix.Rmdir(dir)
		}
	})
	for _, size := range []int{4096, 1 << 20} {
		names, sends := exchanges(b, size)
		for _, name := range names {
			if size > 4096 && name != "read" && name != "write" {
				continue
			}
			b.Run(name+"-"+map[bool]string{true: "1M", false: "4K"}[size > 4096], func(b *testing.B) {
				b.ReportAllocs()
				if name == "read" || name == "write" {
					b.SetBytes(int64(size))
				}
				for b.Loop() {
					sends[name]()
				}
			})
		}
	}
}
