package qemu

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/linux/syscalls"
)

// underListener runs f on a thread that is under a filter with a listener, so that its children
// cannot have another.
func underListener(t *testing.T, f func() error) error {
	t.Helper()
	allowAll := []bpf.Instruction{bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}}
	return underFilter(t, allowAll, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, f)
}

// underFilter runs f on a thread that has a seccomp filter, which its children inherit.
func underFilter(t *testing.T, filter []bpf.Instruction, flags uintptr, f func() error) error {
	t.Helper()
	code, err := syscalls.AssembleFilter(filter)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so the thread ends
		program := &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
		fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(program)))
		if errno != 0 {
			done <- os.NewSyscallError("seccomp", errno)
			return
		}
		if flags&unix.SECCOMP_FILTER_FLAG_NEW_LISTENER != 0 {
			defer unix.Close(int(fd))
		}
		done <- f()
	}()
	return <-done
}

// TestVMMThatCannotBeWatched: without a pidfd the start fails, and leaves no process, not even
// a zombie, and no watcher.
func TestVMMThatCannotBeWatched(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	l := &launch{
		cfg:    hypervisor.Config{Binary: write(t, dir, "qemu", "#!/bin/sh\nexec sleep 1000\n", 0o755)},
		argv:   func(bool) []string { return nil },
		output: os.Stderr, watch: newWatcher(nil, nil),
	}
	noPidfd := []bpf.Instruction{
		load(offNumber),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_PIDFD_OPEN, SkipFalse: 1},
		bpf.RetConstant{Val: refuse(unix.EMFILE)},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
	}
	p := &process{}
	if err := underFilter(t, noPidfd, 0, func() error { return l.fork(p) }); !errors.Is(err, unix.EMFILE) {
		t.Fatalf("started: %v", err)
	}
	select {
	case <-l.watch.ended:
	case <-time.After(time.Minute):
		t.Error("the watcher waits for a vmm that was never named")
	}
	if _, err := unix.Wait4(p.proc.Pid, nil, unix.WNOHANG, nil); !errors.Is(err, unix.ECHILD) {
		t.Errorf("the vmm is left, to be waited for: %v", err)
	}
}

// TestWithoutListener: without a listener a VM boots, under a filter and one of QEMU's own. No
// guest is started from a template, because the vmm could write to it.
func TestWithoutListener(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	said := filepath.Join(dir, "said")
	output, err := os.Create(said)
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	own := false
	l := &launch{
		cfg: hypervisor.Config{Binary: write(t, dir, "qemu", "#!/bin/sh\nexit 7\n", 0o755), ShareDir: t.TempDir()},
		argv: func(ownFilter bool) []string {
			own = ownFilter
			return nil
		},
		output: output, watch: newWatcher(nil, nil),
	}
	p := &process{}
	err = underListener(t, func() error {
		if err := l.fork(p); err != nil {
			return err
		}
		p.state, p.err = p.proc.Wait()
		return nil
	})
	if err != nil || p.err != nil || p.state.ExitCode() != 7 || !own {
		t.Errorf("boot: %v, %v, %v, filter of its own %v", err, p.err, p.state, own)
	}
	p.pidfd.Close()
	if text, err := os.ReadFile(said); err != nil || !strings.Contains(string(text), "sockets, fifos and devices cannot be made") {
		t.Errorf("no warning: %q, %v", text, err)
	}

	ram, err := openRAMFile(write(t, dir, "ram", "memory", 0o600))
	if err != nil {
		t.Fatal(err)
	}
	l.watch = newWatcher(nil, ram)
	if err := underListener(t, func() error { return l.fork(p) }); !errors.Is(err, hypervisor.ErrTemplateUnsafe) {
		t.Errorf("wake up: %v", err)
	}
}
