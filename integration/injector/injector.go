// Package injector makes another process execute system calls, as a debugger does: it attaches
// to a thread, sets the thread's registers and steps over one instruction. The calls have the
// process's credentials, namespaces, descriptors and seccomp filters.
package injector

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrEnded means that the process has ended in a call.
var ErrEnded = errors.New("the process has ended")

// attachTimeout bounds the wait for a thread to be in a system call.
const attachTimeout = 20 * time.Second

// Call is a system call. Each argument is an int, a string or a []byte. Strings, with a zero
// byte at the end, and bytes are put on the thread's stack.
type Call struct {
	Nr   int
	Args []any
}

// Injector controls a thread of another process from a locked thread of this one.
type Injector struct {
	pid   int
	saved unix.PtraceRegs
	// at is the address of a syscall instruction.
	at uint64
	// threads are those that the process has made by Threads.
	threads []int
}

// Run attaches to the first thread of pid, which should wait in a system call most of the time,
// calls f, and detaches.
func Run(pid int, f func(*Injector) error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	i := &Injector{pid: pid}
	if err := i.attach(); err != nil {
		return err
	}
	err := f(i)
	if errors.Is(err, ErrEnded) {
		return err
	}
	return errors.Join(err, i.detach())
}

func (i *Injector) attach() error {
	for began := time.Now(); ; {
		if err := unix.PtraceAttach(i.pid); err != nil {
			return fmt.Errorf("attach to %d: %w", i.pid, err)
		}
		if _, err := i.wait(unix.SIGSTOP); err != nil {
			return err
		}
		if err := unix.PtraceGetRegs(i.pid, &i.saved); err != nil {
			return fmt.Errorf("read registers: %w", err)
		}
		code := make([]byte, 2)
		i.at = i.saved.Rip - uint64(len(code))
		if _, err := unix.PtracePeekText(i.pid, uintptr(i.at), code); err == nil && code[0] == 0x0f && code[1] == 0x05 {
			return nil
		}
		// It was computing and will soon wait again.
		if err := unix.PtraceDetach(i.pid); err != nil {
			return fmt.Errorf("detach: %w", err)
		}
		if time.Since(began) > attachTimeout {
			return fmt.Errorf("process %d makes no system call", i.pid)
		}
		runtime.Gosched()
	}
}

func (i *Injector) detach() error {
	// With these registers the interrupted call continues.
	if err := unix.PtraceSetRegs(i.pid, &i.saved); err != nil {
		return fmt.Errorf("restore registers: %w", err)
	}
	if err := unix.PtraceDetach(i.pid); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	return nil
}

// wait waits for the thread to stop by a signal.
func (i *Injector) wait(want syscall.Signal) (unix.WaitStatus, error) {
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(i.pid, &status, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return status, fmt.Errorf("wait for %d: %w", i.pid, err)
		case !status.Stopped():
			return status, ErrEnded
		case status.StopSignal() == want:
			return status, nil
		default: // another's signal, which it gets
			if err := unix.PtraceCont(i.pid, int(status.StopSignal())); err != nil {
				return status, err
			}
		}
	}
}

// step has the thread execute one instruction. A thread that it makes so stays stopped.
func (i *Injector) step() error {
	for {
		if err := unix.PtraceSingleStep(i.pid); err != nil {
			return fmt.Errorf("step: %w", err)
		}
		status, err := i.wait(unix.SIGTRAP)
		if err != nil || status.TrapCause() != unix.PTRACE_EVENT_CLONE {
			return err
		}
		thread, err := unix.PtraceGetEventMsg(i.pid)
		if err != nil {
			return fmt.Errorf("read number of thread: %w", err)
		}
		i.threads = append(i.threads, int(thread))
	}
}

// Threads has the process make threads, at most most, which never run. It returns how
// many were made, and why it was not one more, if that failed. Afterwards only End is
// left to do.
func (i *Injector) Threads(most int) (int, error) {
	if err := unix.PtraceSetOptions(i.pid, unix.PTRACE_O_TRACECLONE); err != nil {
		return 0, fmt.Errorf("follow threads: %w", err)
	}
	const flags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_SYSVSEM
	for made := range most {
		if _, err := i.Do(Call{unix.SYS_CLONE, []any{flags, 0, 0, 0, 0}}); err != nil {
			return made, err
		}
	}
	return most, nil
}

// End kills the process with its threads, and returns ErrEnded.
func (i *Injector) End() error {
	if err := unix.Kill(i.pid, unix.SIGKILL); err != nil {
		return fmt.Errorf("kill %d: %w", i.pid, err)
	}
	for _, thread := range append(i.threads, i.pid) {
		for {
			var status unix.WaitStatus
			_, err := unix.Wait4(thread, &status, unix.WALL, nil)
			if err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("wait for %d: %w", thread, err)
			}
			if err == nil && !status.Stopped() {
				break
			}
		}
	}
	return ErrEnded
}

// Do makes the call and returns its value, or its error as an Errno. ErrEnded: the
// process has ended instead.
func (i *Injector) Do(c Call) (int, error) {
	regs := i.saved
	regs.Rip, regs.Rax = i.at, uint64(c.Nr)
	regs.Orig_rax = ^uint64(0) // so that no call is restarted
	const redZone, room = 128, 4096
	top := regs.Rsp - redZone
	regs.Rsp = (top - room) &^ 15
	values := []*uint64{&regs.Rdi, &regs.Rsi, &regs.Rdx, &regs.R10, &regs.R8, &regs.R9}
	at := regs.Rsp
	for n, arg := range c.Args {
		switch arg := arg.(type) {
		case int:
			*values[n] = uint64(arg)
			continue
		case string:
			*values[n] = at
			if _, err := unix.PtracePokeData(i.pid, uintptr(at), append([]byte(arg), 0)); err != nil {
				return 0, fmt.Errorf("write argument %d: %w", n, err)
			}
			at += uint64(len(arg)+16) &^ 15
		case []byte:
			*values[n] = at
			if _, err := unix.PtracePokeData(i.pid, uintptr(at), arg); err != nil {
				return 0, fmt.Errorf("write argument %d: %w", n, err)
			}
			at += uint64(len(arg)+16) &^ 15
		default:
			return 0, fmt.Errorf("argument %d is a %T", n, arg)
		}
		if at > top {
			return 0, errors.New("arguments are too large")
		}
	}
	if err := unix.PtraceSetRegs(i.pid, &regs); err != nil {
		return 0, fmt.Errorf("set registers: %w", err)
	}
	if err := i.step(); err != nil {
		return 0, err
	}
	if err := unix.PtraceGetRegs(i.pid, &regs); err != nil {
		return 0, fmt.Errorf("read registers: %w", err)
	}
	const lastErrno = 4095
	if value := int64(regs.Rax); value < 0 && value >= -lastErrno {
		return 0, syscall.Errno(-value)
	}
	return int(regs.Rax), nil
}
