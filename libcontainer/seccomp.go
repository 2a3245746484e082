package libcontainer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// filterInstruction is the size of a struct sock_filter.
	filterInstruction = 8
	// maxFilter is the kernel's BPF_MAXINSNS.
	maxFilter = 4096
)

// SeccompFilter is a system call filter in the form that seccomp(2) takes. The kernel checks
// the program.
type SeccompFilter struct {
	// Program is 1 to 4096 instructions, each a struct sock_filter of 8 bytes, little-endian.
	Program []byte `json:"program"`
	// Flags are SECCOMP_FILTER_FLAG_* bits. NEW_LISTENER is not supported.
	Flags uint32 `json:"flags,omitempty"`
}

func checkSeccomp(f *SeccompFilter) error {
	switch {
	case f == nil:
		return nil
	case len(f.Program) == 0 || len(f.Program)%filterInstruction != 0 || len(f.Program) > maxFilter*filterInstruction:
		return fmt.Errorf("seccomp filter: %d bytes are not between 1 and %d instructions of %d bytes", len(f.Program), maxFilter, filterInstruction)
	case f.Flags&unix.SECCOMP_FILTER_FLAG_NEW_LISTENER != 0:
		return errors.New("seccomp filter: a listener is not supported")
	}
	return nil
}

// loadSeccomp loads the filter for the calling thread only. execve ends the other threads.
func loadSeccomp(f *SeccompFilter) error {
	if f == nil {
		return nil
	}
	program := make([]unix.SockFilter, len(f.Program)/filterInstruction)
	for i := range program {
		b := f.Program[i*filterInstruction:]
		program[i] = unix.SockFilter{
			Code: binary.LittleEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.LittleEndian.Uint32(b[4:]),
		}
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(f.Flags), uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(program)
	if errno != 0 {
		return fmt.Errorf("unable to init seccomp: %w", os.NewSyscallError("seccomp", errno))
	}
	return nil
}
