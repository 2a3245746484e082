package qemu

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// vhostVsockSetGuestCID is VHOST_VSOCK_SET_GUEST_CID of linux/vhost.h, which is _IOW(0xAF,
	// 0x60, __u64).
	vhostVsockSetGuestCID = 0x4008AF60
	// cidTries bounds the search. With 2^31 ids even a second try is rare.
	cidTries = 32
)

// reserveCID opens the vhost-vsock device at path and takes a free context id. Ids are unique
// on the host, and only taking an id shows that it is free. It is taken before QEMU runs, and
// QEMU inherits the file.
func reserveCID(path string, set func(*os.File, uint32) error) (*os.File, uint32, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("open vhost-vsock: %w: load module vhost_vsock or set vsock to off", err)
	}
	for range cidTries {
		cid := randomCID()
		err = set(f, cid)
		if err == nil {
			return f, cid, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return nil, 0, errors.Join(fmt.Errorf("take a vsock context id: %w", err), f.Close())
}

// randomCID returns an id that a guest may have. 0 to 2 are reserved for the hypervisor, the
// loopback and the host. The highest bit is clear, because some tools read ids as signed
// numbers.
func randomCID() uint32 {
	var b [4]byte
	for {
		// rand.Read never returns an error: it ends the program instead.
		rand.Read(b[:])
		if cid := binary.NativeEndian.Uint32(b[:]) &^ (1 << 31); cid > unix.VMADDR_CID_HOST {
			return cid
		}
	}
}

func setGuestCID(f *os.File, cid uint32) error {
	v := uint64(cid)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), vhostVsockSetGuestCID, uintptr(unsafe.Pointer(&v)))
	if errno != 0 {
		return os.NewSyscallError("ioctl VHOST_VSOCK_SET_GUEST_CID", errno)
	}
	return nil
}
