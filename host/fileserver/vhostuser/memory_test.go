package vhostuser

import (
	"bytes"
	"errors"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Bytes are read and written at the process's own addresses, and where nothing is mapped there is
// an error.
func TestProcMem(t *testing.T) {
	fd, err := unix.Open("/proc/self/mem", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	m := ProcMem(fd)
	ram := bytes.Repeat([]byte("RAM."), 5000)
	at := int64(uintptr(unsafe.Pointer(&ram[0])))
	got := make([]byte, len(ram))
	if n, err := m.ReadAt(got, at); n != len(ram) || err != nil || !bytes.Equal(got, ram) {
		t.Errorf("read %d bytes, %v", n, err)
	}
	if n, err := m.WriteAt([]byte("host"), at+4); n != 4 || err != nil || string(ram[:12]) != "RAM.hostRAM." {
		t.Errorf("wrote %d bytes, %v: %q", n, err, ram[:12])
	}
	if _, err := m.ReadAt(got, 0); !errors.Is(err, unix.EIO) {
		t.Errorf("read where nothing is mapped: %v", err)
	}
	runtime.KeepAlive(ram)
}
