// Package privileges gives up rights that a process no longer needs, for all its threads. A
// process of husk's that stays talks to a hostile guest. If the guest takes it over by what it
// sends, it must find nothing to break out with.
package privileges

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"
)

// Secure bits of linux/securebits.h, each with the bit that locks it.
const (
	secNoRoot       = 1<<0 | 1<<1
	secNoFixup      = 1<<2 | 1<<3
	secKeepCapsLock = 1 << 5
	secNoAmbient    = 1<<6 | 1<<7
)

// Kept is what a process still needs.
type Kept struct {
	// Capabilities have the kernel's names ("CAP_NET_ADMIN").
	Capabilities []string
	// Calls are system calls in addition to those of every process of husk's.
	Calls []string
	// Network: the process works on interfaces and talks to name servers.
	Network bool
	// Programs: the process executes programs, which get no capability and stay under the
	// filter.
	Programs bool
}

// Drop takes all capabilities and system calls except those in kept from the process, from all
// its threads, and from programs that it executes. Without CAP_SYS_PTRACE nobody can trace the
// process any more. The program must be built without cgo. After an error the process has fewer
// rights than before but too many, and should end.
func Drop(kept Kept) error {
	mask, err := capabilities(kept.Capabilities)
	if err != nil {
		return err
	}
	filter, err := program(kept)
	if err != nil {
		return fmt.Errorf("make filter of system calls: %w", err)
	}
	// uid 0 gets nothing by executing a program or by changing its user.
	const bits = secNoRoot | secNoFixup | secKeepCapsLock | secNoAmbient
	if err := prctl("drop ambient capabilities", unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL); err != nil {
		return err
	}
	if err := prctl("set secure bits", unix.PR_SET_SECUREBITS, bits); err != nil {
		return err
	}
	last, err := capability.LastCap()
	if err != nil {
		return fmt.Errorf("find the kernel's capabilities: %w", err)
	}
	for c := range last + 1 {
		if mask&(1<<c) != 0 {
			continue
		}
		if err := prctl("drop "+c.String(), unix.PR_CAPBSET_DROP, uintptr(c)); err != nil {
			return err
		}
	}
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	sets := &[2]unix.CapUserData{}
	for i := range sets {
		half := uint32(mask >> (32 * i))
		sets[i] = unix.CapUserData{Effective: half, Permitted: half}
	}
	if err := allThreads("drop capabilities", unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(sets)), 0); err != nil {
		return err
	}
	// This is for the whole process.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("hide memory: %w", err)
	}
	return install(filter)
}

// capabilities returns a set as a bit mask.
func capabilities(names []string) (mask uint64, err error) {
	known := capability.ListKnown()
	for _, name := range names {
		i := slices.IndexFunc(known, func(c capability.Cap) bool { return "CAP_"+strings.ToUpper(c.String()) == name })
		if i < 0 {
			return 0, fmt.Errorf("capability %q is unknown", name)
		}
		mask |= 1 << known[i]
	}
	return mask, nil
}

func prctl(what string, option, arg uintptr) error {
	return allThreads(what, unix.SYS_PRCTL, option, arg, 0)
}

// allThreads makes a system call on all threads, because capabilities belong to threads and not
// to the process.
func allThreads(what string, trap, a1, a2, a3 uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(trap, a1, a2, a3, 0, 0, 0); errno != 0 {
		return fmt.Errorf("%s: %w", what, errno)
	}
	return nil
}

// install puts every thread under the filter.
func install(filter []unix.SockFilter) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	program := &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(program)))
	if errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	if thread != 0 {
		return fmt.Errorf("install filter of system calls: thread %d is under another", thread)
	}
	return nil
}
