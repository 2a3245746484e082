package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// callTimeout bounds every call of the runtime: what takes longer hangs.
const callTimeout = 3 * time.Minute

// reaper waits for every child: what the runtime leaves reparents to this process, as
// to an engine's shim, and is waited for by nobody else.
type reaper struct {
	mu      sync.Mutex
	waiting map[int]chan unix.WaitStatus
}

func startReaper() (*reaper, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become subreaper: %w", err)
	}
	return &reaper{waiting: map[int]chan unix.WaitStatus{}}, nil
}

// start starts a program, whose end comes on the channel.
func (r *reaper) start(argv []string, out *os.File, env []string) (pid int, end <-chan unix.WaitStatus, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, nil, err
	}
	defer null.Close()
	p, err := os.StartProcess(argv[0], argv, &os.ProcAttr{Files: []*os.File{null, out, out}, Env: env})
	if err != nil {
		return 0, nil, err
	}
	ch := make(chan unix.WaitStatus, 1)
	first := len(r.waiting) == 0
	r.waiting[p.Pid] = ch
	if first {
		go r.reap()
	}
	return p.Pid, ch, nil
}

// reap reaps as long as there is something to wait for.
func (r *reaper) reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		r.mu.Lock()
		if ch := r.waiting[pid]; err == nil && ch != nil {
			ch <- status
			delete(r.waiting, pid)
		}
		empty := len(r.waiting) == 0
		r.mu.Unlock()
		if empty {
			return
		}
	}
}

// started is a call of the runtime that goes on.
type started struct {
	l    *load
	what string
	pid  int
	end  <-chan unix.WaitStatus
	said *os.File
}

func (l *load) start(args ...string) (*started, error) {
	said, err := os.CreateTemp(l.dir, "said-")
	if err != nil {
		return nil, err
	}
	argv := []string{l.husk, "--root", l.root}
	if l.config != "" {
		argv = append(argv, "--config", l.config)
	}
	s := &started{l: l, what: "husk " + strings.Join(args, " "), said: said}
	if s.pid, s.end, err = l.reaper.start(append(argv, args...), said, os.Environ()); err != nil {
		return nil, err
	}
	return s, nil
}

// wait returns an error unless the call succeeds.
func (s *started) wait() error {
	defer func() {
		s.said.Close()
		os.Remove(s.said.Name())
	}()
	var status unix.WaitStatus
	select {
	case status = <-s.end:
	case <-time.After(callTimeout):
		_ = unix.Kill(s.pid, unix.SIGKILL)
		return fmt.Errorf("%s: has not ended in %v", s.what, callTimeout)
	}
	if status.Exited() && status.ExitStatus() == 0 {
		return nil
	}
	text, _ := os.ReadFile(s.said.Name())
	return fmt.Errorf("%s: %w: %s", s.what, statusError(status), bytes.TrimSpace(text))
}

type statusError unix.WaitStatus

func (e statusError) Error() string {
	if st := unix.WaitStatus(e); st.Signaled() {
		return st.Signal().String()
	}
	return "exit code " + strconv.Itoa(unix.WaitStatus(e).ExitStatus())
}

func (l *load) call(args ...string) error {
	s, err := l.start(args...)
	if err != nil {
		return err
	}
	return s.wait()
}

// ask returns what a call prints.
func (l *load) ask(args ...string) (string, error) {
	s, err := l.start(args...)
	if err != nil {
		return "", err
	}
	// Another descriptor: wait removes the file.
	out, err := os.Open(s.said.Name())
	if err != nil {
		return "", err
	}
	defer out.Close()
	if err := s.wait(); err != nil {
		return "", err
	}
	var text bytes.Buffer
	_, err = text.ReadFrom(out)
	return text.String(), err
}

// id returns an id nobody else uses.
func (l *load) id() string {
	return fmt.Sprintf("%s-%d", filepath.Base(l.dir), l.lastID.Add(1))
}

func (l *load) pidFile(id string) string { return filepath.Join(l.dir, "pid-"+id) }

// pidOf reads the pid file of a container; 0: there is none.
func (l *load) pidOf(id string) int {
	text, err := os.ReadFile(l.pidFile(id))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(string(text))
	return pid
}

// makeBundle makes a bundle of busybox.
func makeBundle(dir string) error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("%w (apt-get install busybox-static)", err)
	}
	rootfs := filepath.Join(dir, "rootfs")
	for _, d := range []string{"bin", "proc", "sys", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(rootfs, d), 0o755); err != nil {
			return err
		}
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(rootfs, "bin/busybox"), program, 0o755); err != nil {
		return err
	}
	for _, applet := range []string{"sh", "true", "sleep", "echo"} {
		if err := os.Symlink("busybox", filepath.Join(rootfs, "bin", applet)); err != nil {
			return err
		}
	}
	return writeSpec(dir, rootfs, nil)
}

// writeSpec writes a bundle's config.json; nil is a network namespace of its own.
func writeSpec(dir, rootfs string, n *network) error {
	spec := &specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: rootfs},
		Process: &specs.Process{
			Args: []string{"sh", "-c", "while :; do echo tick; sleep 1; done"},
			Env:  []string{"PATH=/bin"}, Cwd: "/",
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
		}},
	}
	ns := specs.LinuxNamespace{Type: specs.NetworkNamespace}
	if n != nil {
		ns.Path = n.path
	}
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, ns)
	text, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), text, 0o644)
}
