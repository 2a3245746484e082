//go:build integration

package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// callNames are the system calls before which a fault may happen: those by which a runtime
// changes something outside of itself or communicates. Calls that Go's own runtime makes at any
// time are left out.
var callNames = map[uint64]string{
	unix.SYS_OPENAT: "openat", unix.SYS_MKDIRAT: "mkdirat", unix.SYS_UNLINKAT: "unlinkat",
	unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2", unix.SYS_FLOCK: "flock", unix.SYS_WRITE: "write",
	unix.SYS_CLONE: "clone", unix.SYS_CLONE3: "clone3", unix.SYS_EXECVE: "execve", unix.SYS_EXIT_GROUP: "exit_group",
	unix.SYS_PIDFD_OPEN: "pidfd_open", unix.SYS_PIDFD_SEND_SIGNAL: "pidfd_send_signal",
	unix.SYS_SOCKET: "socket", unix.SYS_SOCKETPAIR: "socketpair", unix.SYS_CONNECT: "connect", unix.SYS_BIND: "bind",
	unix.SYS_LISTEN: "listen", unix.SYS_ACCEPT4: "accept4", unix.SYS_SENDMSG: "sendmsg", unix.SYS_SENDTO: "sendto",
	unix.SYS_RECVMSG: "recvmsg", unix.SYS_MOUNT: "mount", unix.SYS_UMOUNT2: "umount2", unix.SYS_PIVOT_ROOT: "pivot_root",
	unix.SYS_SETNS: "setns", unix.SYS_UNSHARE: "unshare", unix.SYS_MOVE_MOUNT: "move_mount", unix.SYS_OPEN_TREE: "open_tree",
	unix.SYS_FSMOUNT: "fsmount", unix.SYS_CHROOT: "chroot",
}

// Roles of husk's processes, by their environment or their program.
const (
	roleCLI        = "cli"
	roleSupervisor = "supervisor"
	roleStandIn    = "stand-in"
	roleExec       = "exec"
	roleVMM        = "vmm"
)

// point is the moment before the N-th system call of this name in a process.
type point struct {
	Role, Call string
	N          int
}

func (p point) String() string { return fmt.Sprintf("%s/%s#%d", p.Role, p.Call, p.N) }

// tracee is one process that a tracer follows, with all its threads.
type tracee struct {
	pid    int
	role   string
	counts map[string]int
}

// tracer follows the system calls of a call of the runtime, and of the runtime's processes that
// it starts or that exist already. It does not follow the vmm, which makes too many calls in no
// fixed order.
type tracer struct {
	at      func(p point, pid int) (enough bool)
	cli     int
	threads map[int]*thread
	procs   map[int]*tracee
}

type thread struct {
	proc *tracee
	born bool // its first stop was seen
}

const (
	syscallStop  = unix.SIGTRAP | 0x80 // PTRACE_O_TRACESYSGOOD
	traceOptions = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK |
		unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACEEXEC
	eventStop = 128 // PTRACE_EVENT_STOP, ptrace(2)
)

// startTraced starts the runtime as start does, and calls at before each system call of
// interest, while the process is stopped. When at returns enough, or the runtime's process
// ends, all processes continue untraced: the tracing thread ends, and the kernel releases what
// it traced. live are running processes to follow as well; nobody may wait for their end
// meanwhile. It returns the pids of the processes that it has followed, without the cli.
func (e *env) startTraced(c call, live map[int]string, at func(p point, pid int) (enough bool), args ...string) (p *process, others []int, err error) {
	e.t.Helper()
	p, ours := e.prepare(c, args...)
	t := &tracer{at: at, threads: map[int]*thread{}, procs: map[int]*tracee{}}
	if p.cmd.SysProcAttr == nil {
		p.cmd.SysProcAttr = &unix.SysProcAttr{}
	}
	p.cmd.SysProcAttr.Ptrace = true
	done := make(chan error, 1)
	onOwnThread(func() {
		err := p.cmd.Start()
		for _, f := range ours {
			f.Close()
		}
		if err != nil {
			done <- err
			return
		}
		t.cli = p.cmd.Process.Pid
		p.status, err = t.run(live)
		done <- err
	})
	err = <-done
	if p.cmd.Process == nil {
		return nil, nil, err
	}
	for pid, proc := range t.procs {
		if pid != t.cli && proc.role != "" && proc.role != roleVMM {
			others = append(others, pid)
		}
	}
	go func() {
		if p.status == nil {
			_ = p.cmd.Wait()
		}
		close(p.done)
	}()
	return p, others, err
}

// onOwnThread runs f on a new thread that has no children and ends afterwards. Other goroutines
// may have started processes on the thread of a goroutine, and a tracer, which waits for all
// children of its thread, would take their exit status.
func onOwnThread(f func()) {
	go func() {
		runtime.LockOSThread()
		children, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", unix.Gettid()))
		if len(children) > 0 {
			// While this goroutine is locked to the thread, the next one runs on another.
			onOwnThread(f)
			<-time.After(testTimeout)
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
}

// run traces until at returns enough. The status is the cli's, if it has ended.
func (t *tracer) run(live map[int]string) (*unix.WaitStatus, error) {
	// The cli stops at its execve. Only children of this thread are waited for.
	var status unix.WaitStatus
	if err := t.wait(t.cli, &status); err != nil {
		return nil, fmt.Errorf("wait for the traced cli: %w", err)
	}
	t.procs[t.cli] = &tracee{pid: t.cli, role: roleCLI, counts: map[string]int{}}
	t.threads[t.cli] = &thread{proc: t.procs[t.cli], born: true}
	if err := unix.PtraceSetOptions(t.cli, traceOptions); err != nil {
		return nil, fmt.Errorf("trace the cli: %w", err)
	}
	for pid, role := range live {
		if err := t.seize(pid, role); err != nil {
			return nil, err
		}
	}
	if err := unix.PtraceSyscall(t.cli, 0); err != nil {
		return nil, err
	}
	for {
		tid, err := unix.Wait4(-1, &status, unix.WALL|unix.WNOTHREAD, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("wait for what is traced: %w", err)
		}
		if !status.Stopped() {
			delete(t.threads, tid)
			if tid == t.cli {
				return &status, nil
			}
			continue
		}
		enough, err := t.stopped(tid, status)
		if enough || err != nil {
			return nil, err
		}
	}
}

func (t *tracer) wait(pid int, status *unix.WaitStatus) error {
	for {
		_, err := unix.Wait4(pid, status, unix.WALL|unix.WNOTHREAD, nil)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// seize follows a running process with all its threads.
func (t *tracer) seize(pid int, role string) error {
	proc := &tracee{pid: pid, role: role, counts: map[string]int{}}
	t.procs[pid] = proc
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return err
	}
	for _, task := range tasks {
		var tid int
		if _, err := fmt.Sscan(task.Name(), &tid); err != nil {
			return err
		}
		if err := seizeThread(tid); errors.Is(err, unix.ESRCH) {
			continue
		} else if err != nil {
			return fmt.Errorf("trace %s %d: %w", role, pid, err)
		}
		t.threads[tid] = &thread{proc: proc, born: true}
	}
	return nil
}

func seizeThread(tid int) error {
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(tid), 0, traceOptions, 0, 0); errno != 0 {
		return errno
	}
	return unix.PtraceInterrupt(tid)
}

// stopped handles one stop of a thread and continues it.
func (t *tracer) stopped(tid int, status unix.WaitStatus) (enough bool, err error) {
	th := t.threads[tid]
	if th == nil {
		th = &thread{proc: t.procOf(tid)}
		t.threads[tid] = th
	}
	sig, event := status.StopSignal(), int(status)>>16
	deliver := 0
	switch {
	case sig == syscallStop:
		if p, ok := th.proc.entered(tid); ok && t.at(p, th.proc.pid) {
			return true, nil
		}
	case event == unix.PTRACE_EVENT_EXEC:
		// After execve one thread is left, and its id is the process's.
		th.proc = &tracee{pid: tid, role: roleOf(tid), counts: map[string]int{}}
		t.procs[tid] = th.proc
		if th.proc.role == roleVMM {
			delete(t.threads, tid)
			return false, gone(unix.PtraceDetach(tid))
		}
	case event != 0: // a new thread or process, or the stop of a seized one
	case sig == unix.SIGSTOP && !th.born: // the first stop of a new one
	default:
		deliver = int(sig)
	}
	th.born = true
	return false, gone(unix.PtraceSyscall(tid, deliver))
}

// gone returns nil for an error of a thread that was killed after it stopped.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// procOf returns the process of a new thread. The role of a new process is known only when it
// has executed its program.
func (t *tracer) procOf(tid int) *tracee {
	pid := tid
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, "Tgid:"); ok {
			_, _ = fmt.Sscan(text, &pid)
		}
	}
	if t.procs[pid] == nil {
		t.procs[pid] = &tracee{pid: pid, counts: map[string]int{}}
	}
	return t.procs[pid]
}

// entered counts the call that a thread is about to make.
func (p *tracee) entered(tid int) (point, bool) {
	var info struct {
		op   uint8
		_    [3]uint8
		arch uint32
		ip   uint64
		sp   uint64
		nr   uint64
		args [8]uint64
	}
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid),
		unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	name := callNames[info.nr]
	if errno != 0 || info.op != unix.PTRACE_SYSCALL_INFO_ENTRY || name == "" || p.role == "" {
		return point{}, false
	}
	p.counts[name]++
	return point{Role: p.role, Call: name, N: p.counts[name]}, true
}

// roleOf returns the role of a process of husk; "" for other processes.
func roleOf(pid int) string {
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if strings.Contains(filepath.Base(exe), "qemu") {
		return roleVMM
	}
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	for kv := range strings.SplitSeq(string(data), "\x00") {
		if role, ok := strings.CutPrefix(kv, "_HUSK_ROLE="); ok {
			return role
		}
	}
	return ""
}
