package libcontainer

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/syscalls"
)

// InitArg is argv[0] of the init stage.
const InitArg = "husk-init"

// The descriptors that the parent gives the stage after stdio. Passed descriptors come before
// these, at the numbers that the process will see, and move these up by their count.
const (
	stdioFDs = 3
	socketFD = 3
	pidfdFD  = 4 // a process of the container to join, or with a user namespace its mount namespace
	cgroupNS = 5 // cgroup namespace to join
)

// The stage changes one thread (namespaces, ids, capabilities), and that thread executes the
// container's program. init functions run on the main thread, so locking here makes it the main
// thread, which /proc/PID shows.
func init() {
	if IsInit() {
		runtime.LockOSThread()
	}
}

// IsInit says whether this process was started as an init stage.
func IsInit() bool {
	return len(os.Args) > 0 && os.Args[0] == InitArg
}

// InitStage sets up the process that its parent describes, and executes its program. It never
// returns. A program must call it first in main if IsInit returns true.
func InitStage() {
	passed, _ := strconv.Atoi(os.Getenv(passedEnv)) // not set: none
	s := stage{sock: socketFD + passed, passed: passed}
	err := s.run()
	// The parent may have died; then nobody reads the error.
	_ = sendFrame(s.sock, frameError, err.Error(), -1)
	os.Exit(1)
}

// stage is the process between fork and execve.
type stage struct {
	sock int
	// passed is the number of the process's own descriptors after stdio.
	passed int
	cfg    *initConfig
	root   root // the container's root directory
	// exits is true after exitOnSignals.
	exits bool
	// others are the mount points that moveRoot unmounts; nil if they have not been listed yet.
	others []string
}

// socketReader reads the socket by blocking system calls. Go's poller would cost the stage a
// thread and descriptors.
type socketReader int

func (fd socketReader) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(int(fd), p)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case n == 0 && len(p) > 0:
			return 0, errors.New("parent has gone")
		default:
			return n, nil
		}
	}
}

// run sets up the process and executes its program. It returns only with an error.
func (s *stage) run() error {
	unix.CloseOnExec(s.sock)
	// The stage still has the runtime's binary and descriptors open. A process of the container
	// that may trace others must not reach them through /proc/PID of the stage. execve makes
	// the process dumpable again.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_DUMPABLE", err)
	}
	cfg, err := s.awaitConfig()
	if err != nil {
		return err
	}
	s.cfg = cfg
	unix.Umask(0) // file modes of the spec apply unchanged
	if cfg.Join {
		err = s.join()
	} else if err = s.setUp(); err != nil {
		err = fmt.Errorf("error during container init: %w", err)
	}
	if err != nil {
		return err
	}
	return s.become()
}

// awaitConfig reads the stage's configuration. A prepared stage first reads a rehearsal, so
// that the code for it has run before the template is saved.
func (s *stage) awaitConfig() (*initConfig, error) {
	for {
		cfg, err := readConfig(socketReader(s.sock))
		if err != nil || !cfg.Rehearsal {
			return cfg, err
		}
		if cfg.Loopback {
			if err := LoopbackUp(); err != nil {
				return nil, err
			}
		}
		if s.others, err = rootMounts(); err != nil {
			return nil, err
		}
		s.exitOnSignals()
		if err := sendFrame(s.sock, frameReady, "", -1); err != nil {
			return nil, os.NewSyscallError("send to parent", err)
		}
	}
}

// join enters the mount and cgroup namespaces of the container. The parent has joined the
// others before the fork.
func (s *stage) join() error {
	unix.CloseOnExec(pidfdFD + s.passed)
	err := s.joinNamespaces()
	if err != nil {
		return fmt.Errorf("join namespaces of container: %w", err)
	}
	_ = unix.Close(pidfdFD + s.passed)
	if s.root, err = openRoot("/"); err != nil {
		return err
	}
	if s.cfg.Process.Terminal {
		return s.openConsole()
	}
	return nil
}

func (s *stage) joinNamespaces() error {
	if !s.cfg.UserNS {
		return syscalls.JoinNamespaces(pidfdFD+s.passed, unix.CLONE_NEWNS|unix.CLONE_NEWCGROUP)
	}
	// In a user namespace the stage may join by a pidfd only if it may read the program that
	// the container's first process executes. A descriptor of the namespace has no such
	// condition.
	if s.cfg.CgroupNS {
		unix.CloseOnExec(cgroupNS + s.passed)
		if err := syscalls.JoinNamespaces(cgroupNS+s.passed, unix.CLONE_NEWCGROUP); err != nil {
			return err
		}
	}
	return syscalls.JoinNamespaces(pidfdFD+s.passed, unix.CLONE_NEWNS)
}

// setUp sets up the container's mounts, host name and settings. The stage is in the container's
// namespaces already.
func (s *stage) setUp() error {
	cfg := s.cfg
	if cfg.CgroupNS {
		// The namespace's root is the cgroup that the caller of unshare is in. With
		// CLONE_NEWCGROUP in clone that would be the parent's.
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return os.NewSyscallError("unshare CLONE_NEWCGROUP", err)
		}
	}
	if cfg.Loopback {
		if err := LoopbackUp(); err != nil {
			return err
		}
	}
	if cfg.Hostname != "" {
		if err := unix.Sethostname([]byte(cfg.Hostname)); err != nil {
			return os.NewSyscallError("sethostname", err)
		}
	}
	if cfg.Domainname != "" {
		if err := unix.Setdomainname([]byte(cfg.Domainname)); err != nil {
			return os.NewSyscallError("setdomainname", err)
		}
	}
	if err := writeSysctl(cfg.Sysctl); err != nil {
		return err
	}
	return s.setUpRootfs()
}

// LoopbackUp brings up lo in the network namespace of the calling thread.
func LoopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	ifr.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// become applies the process's settings, waits until the parent releases it, and executes the
// program.
func (s *stage) become() error {
	p := &s.cfg.Process
	// Descriptors that other programs have left open in the parent must not reach the
	// container. They are marked close-on-exec before the seccomp filter is loaded, which may
	// forbid close_range. The stage's own descriptors are marked as well.
	if err := syscalls.CloseOnExec(stdioFDs + s.passed); err != nil {
		return err
	}
	env, err := applyProcess(p)
	if err != nil {
		return err
	}
	file, err := lookPath(p.Args[0], env)
	if err != nil {
		return err
	}
	s.exitOnSignals()
	if err := sendFrame(s.sock, frameReady, "", -1); err != nil {
		return os.NewSyscallError("send to parent", err)
	}
	release := make([]byte, 1)
	if _, err := socketReader(s.sock).Read(release); err != nil {
		return err
	}
	if err := resetSignals(); err != nil {
		return err
	}
	// The filter is loaded last, so that it does not have to allow more than the program needs.
	// Hooks run under it too, because their files come from the container and are trusted no
	// more than the program.
	if p.NoNewPrivs {
		if err := loadSeccomp(p.Seccomp); err != nil {
			return err
		}
	}
	if err := runHooks("startContainer", s.cfg.Hooks.StartContainer, s.cfg.State, env); err != nil {
		return err
	}
	return &os.PathError{Op: "exec", Path: file, Err: syscall.Exec(file, p.Args, env)}
}

// exitOnSignals makes a waiting stage exit on a signal, with the exit code of a process that
// the signal killed. Go's own handlers do not suffice: they kill the process with the signal,
// which PID 1 of a pid namespace ignores, and on SIGQUIT they print stack traces to the
// container's stderr.
func (s *stage) exitOnSignals() {
	if s.exits {
		return
	}
	s.exits = true
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTRAP, unix.SIGABRT, unix.SIGUSR1,
		unix.SIGUSR2, unix.SIGPIPE, unix.SIGALRM, unix.SIGTERM, unix.SIGSTKFLT, unix.SIGXCPU, unix.SIGXFSZ,
		unix.SIGVTALRM, unix.SIGPROF, unix.SIGIO, unix.SIGPWR, unix.SIGSYS)
	go func() {
		if sig, ok := (<-signals).(syscall.Signal); ok {
			os.Exit(128 + int(sig))
		}
	}()
}

// kernelSigaction is at least as long as the kernel's struct sigaction on every 64-bit
// architecture. The handler is its first field.
type kernelSigaction [8]uintptr

// resetSignals resets what a process would keep at execve: ignored and blocked signals.
func resetSignals() error {
	const sigIgn = 1
	for sig := range uintptr(65) {
		var old, def kernelSigaction
		if rtSigaction(sig, nil, &old) == nil && old[0] == sigIgn {
			_ = rtSigaction(sig, &def, nil)
		}
	}
	var none unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &none, nil); err != nil {
		return os.NewSyscallError("sigprocmask", err)
	}
	return nil
}
