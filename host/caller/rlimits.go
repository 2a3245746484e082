package caller

import (
	"errors"
	"os"
	"runtime"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var rlimitTypes = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

// Rlimits returns the limits of husk's caller. With runc a container's process inherits those
// that its spec does not set.
func Rlimits() ([]specs.POSIXRlimit, error) {
	var all []specs.POSIXRlimit
	for name, resource := range rlimitTypes {
		var l unix.Rlimit
		if err := unix.Getrlimit(resource, &l); err != nil {
			return nil, os.NewSyscallError("getrlimit", err)
		}
		if resource == unix.RLIMIT_NOFILE && l.Cur == l.Max-1 {
			// Go raises this limit when it starts.
			l = beforeGo(l)
		}
		all = append(all, specs.POSIXRlimit{Type: name, Soft: l.Cur, Hard: l.Max})
	}
	return all, nil
}

// beforeGo returns the limit of open files with which this process was started. Go restores it
// in a child right before execve and has no function that returns it, so it is read from a
// child that is stopped there. If tracing is forbidden, it is the hard limit.
func beforeGo(raised unix.Rlimit) unix.Rlimit {
	// A tracer is one thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	hard := unix.Rlimit{Cur: raised.Max, Max: raised.Max}
	child, err := os.StartProcess("/proc/self/exe", []string{"husk"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{Ptrace: true}})
	if err != nil {
		return hard
	}
	// Whether it was stopped or not, it does not execute husk's code.
	var status unix.WaitStatus
	_, err = unix.Wait4(child.Pid, &status, 0, nil)
	for errors.Is(err, unix.EINTR) {
		_, err = unix.Wait4(child.Pid, &status, 0, nil)
	}
	var l unix.Rlimit
	if err == nil {
		err = unix.Prlimit(child.Pid, unix.RLIMIT_NOFILE, nil, &l)
	}
	_ = child.Kill()
	_, _ = child.Wait()
	if err != nil || !status.Stopped() {
		return hard
	}
	return l
}
