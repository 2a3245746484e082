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
)

// InitArg is argv[0] of the init stage.
const InitArg = "husk-init"

// Descriptors the parent gives the stage after stdio. Those that the process is
// passed are where it will have them, and move these up by their count.
const (
	stdioFDs = 3
	socketFD = 3
	pidfdFD  = 4 // of a process in the container to join, or its mount namespace
	cgroupNS = 5 // its cgroup namespace
)

// The stage changes its thread (namespaces, ids, capabilities) and then turns
// that thread into the container's process. Locked here, during initialization,
// it is the main thread for certain, so that /proc/PID shows what the stage did.
func init() {
	if IsInit() {
		runtime.LockOSThread()
	}
}

// IsInit says whether this process was started to be an init stage.
func IsInit() bool {
	return len(os.Args) > 0 && os.Args[0] == InitArg
}

// InitStage sets up the process its parent describes and becomes it. It never
// returns; call it first thing in main when IsInit.
func InitStage() {
	passed, _ := strconv.Atoi(os.Getenv(passedEnv)) // none: not set
	s := stage{sock: socketFD + passed, passed: passed}
	err := s.run()
	// Nobody may be there to hear it, when the parent has died.
	_ = sendFrame(s.sock, frameError, err.Error(), -1)
	os.Exit(1)
}

// stage is the process between fork and execve.
type stage struct {
	sock int
	// passed is how many descriptors after stdio are the process's.
	passed int
	cfg    *initConfig
	root   root // the container's
	// exits is set once exitOnSignals has been called.
	exits bool
	// others are the mounts that moveRoot unmounts, nil when not known yet.
	others []string
}

// socketReader reads the socket without Go's poller, whose descriptors and
// threads the stage does without.
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

// run returns only with an error.
func (s *stage) run() error {
	unix.CloseOnExec(s.sock)
	// A process of the container that may trace others must not get at the
	// runtime's binary or descriptors through /proc/PID of the stage. execve ends it.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_DUMPABLE", err)
	}
	cfg, err := s.awaitConfig()
	if err != nil {
		return err
	}
	s.cfg = cfg
	unix.Umask(0) // modes are meant as given
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

// awaitConfig reads the stage's configuration; a prepared stage is given another
// one first, so that it has done it before.
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

// join enters the mount and cgroup namespaces of the container; the others were
// the parent's to enter before the fork.
func (s *stage) join() error {
	unix.CloseOnExec(pidfdFD + s.passed)
	// The kernel refuses to move a thread that shares its root with others.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return os.NewSyscallError("unshare CLONE_FS", err)
	}
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
		return unix.Setns(pidfdFD+s.passed, unix.CLONE_NEWNS|unix.CLONE_NEWCGROUP)
	}
	// A pidfd would let the stage in, by its rights in the user namespace, only if
	// it may read the program that the container's first process executes.
	if s.cfg.CgroupNS {
		unix.CloseOnExec(cgroupNS + s.passed)
		if err := unix.Setns(cgroupNS+s.passed, unix.CLONE_NEWCGROUP); err != nil {
			return err
		}
	}
	return unix.Setns(pidfdFD+s.passed, unix.CLONE_NEWNS)
}

// setUp makes the container around the stage, which is in its namespaces.
func (s *stage) setUp() error {
	cfg := s.cfg
	if cfg.CgroupNS {
		// Not by clone: the namespace's root would be the cgroup of the parent.
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

// LoopbackUp brings lo up in the network namespace of the caller.
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

// become applies the process's settings, waits for the release and executes.
func (s *stage) become() error {
	p := &s.cfg.Process
	// Whatever the parent's parent left open must not reach the container. It is
	// done before a filter may forbid it; the stage's own files close at execve too.
	if err := unix.CloseRange(uint(stdioFDs+s.passed), ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return os.NewSyscallError("close_range", err)
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
	// Last of all, so that the filter needs to allow no more than the program does;
	// but a hook comes out of the container's files and is no freer than the program.
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

// exitOnSignals ends the waiting stage on a signal with the exit code a process
// killed by it has. Go's own handlers would do so outside of a pid namespace
// only: PID 1 of one cannot kill itself. And SIGQUIT would write a trace of the
// stage to the container's stderr.
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

// kernelSigaction is at least as long as the kernel's struct on any 64-bit
// machine; the handler is first in it.
type kernelSigaction [8]uintptr

// resetSignals undoes what execve keeps: ignored signals and the blocked ones.
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
