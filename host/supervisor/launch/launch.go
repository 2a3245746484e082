// Package launch is how the cli re-executes husk as a process that outlives it,
// a supervisor or an exec process, and how the two talk until it stands by
// itself: one bootstrap down, one report up, one commit down. Where the parent has
// something to do halfway, the child says up when it is prepared, and the parent
// down when to proceed. A child whose
// parent vanishes before the commit must end, so that a cli killed in the middle
// of create leaves nothing running.
package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/timings"
	"github.com/huskvm/husk/linux/namespaces"
	"github.com/huskvm/husk/linux/syscalls"
	"github.com/huskvm/husk/nsfork"
)

// Role says what a re-executed husk is.
type Role string

// The roles.
const (
	Supervisor Role = "supervisor"
	Exec       Role = "exec"
	// StandIn is the pid of a container in place of its supervisor.
	StandIn Role = "stand-in"
	Hog     Role = "hog" // started without this package: see host/supervisor/hog
)

// apart before a role is of a process that only starts the one of that role.
const apart = "apart:"

// The environment of a re-executed husk: its role and the names of its
// descriptors, "bootstrap=3,console=4".
const (
	roleEnv = "_HUSK_ROLE"
	fdsEnv  = "_HUSK_FDS"
)

// Names of the descriptors that are passed.
const (
	FDBootstrap = "bootstrap" // both ways, JSON documents
	FDConsole   = "console"   // the engine's console socket, connected
	fdGate      = "gate"      // at its end when a process apart may be started
)

// None of these can be mistaken for the newline that ends a JSON document.
const (
	proceedByte = 'P'
	commitByte  = 'C'
)

// CurrentRole returns what this process was re-executed as, or "" for a cli.
func CurrentRole() Role { return Role(os.Getenv(roleEnv)) }

// quiet keeps a crash to one line: stderr of a re-executed husk is the container's,
// or a user's terminal.
const quiet = "GOTRACEBACK=none"

// Environment is that of a re-executed husk which is passed no descriptors.
func Environment(role Role) []string { return []string{roleEnv + "=" + string(role), quiet} }

// Options say how a child is made.
type Options struct {
	Role Role
	// Args become the child's argv: the container's own, so that ps on the host
	// shows what runs inside.
	Args []string
	// Namespaces the child is to live in: new ones, or joined by path. Mount
	// namespaces cannot be joined here.
	Namespaces []specs.LinuxNamespace
	// UIDMaps and GIDMaps are those of a new user namespace among them. In one the
	// child is its root.
	UIDMaps, GIDMaps []syscall.SysProcIDMap
	// Apart starts the child from a process in between, which ends: the child is then
	// one of the first process of its pid namespace, who reaps it, instead of the
	// caller's. It is not there before Child.Release, by which time the one in
	// between, Child.Process, may have been moved into a cgroup.
	Apart bool
	// Stdin, Stdout, Stderr are inherited; nil is /dev/null.
	Stdin, Stdout, Stderr *os.File
	// Console is passed under the name FDConsole when not nil.
	Console *os.File
	// Files are passed by name; the child finds them with Parent.File.
	Files []NamedFile
}

// NamedFile is a descriptor to pass.
type NamedFile struct {
	Name string // without a comma or an equals sign
	File *os.File
}

// CloseFiles closes files that have been passed, or are not to be.
func CloseFiles(files []NamedFile) {
	for _, f := range files {
		f.File.Close()
	}
}

// Child is a re-executed husk as its parent sees it.
type Child struct {
	Process *os.Process
	conn    net.Conn
	reports *json.Decoder
	gate    *os.File // of a child apart, until it is released
}

// Start re-executes husk. The child waits for its bootstrap. The program must
// have locked its main goroutine to the main thread, or the thread that is moved
// into other namespaces to fork may be that one, which cannot be thrown away.
func Start(o Options) (*Child, error) {
	conn, theirs, err := syscalls.SocketPairConn(FDBootstrap)
	if err != nil {
		return nil, fmt.Errorf("start %s: create bootstrap socket: %w", o.Role, err)
	}
	defer theirs.Close()
	cmd := &exec.Cmd{
		Path:   "/proc/self/exe",
		Args:   o.Args,
		Env:    Environment(o.Role),
		Stdin:  fileOrNil(o.Stdin),
		Stdout: fileOrNilWriter(o.Stdout),
		Stderr: fileOrNilWriter(o.Stderr),
		// A session of its own: ^C at the terminal of a foreground run reaches the
		// cli alone, which forwards it once.
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	names := addFD(cmd, nil, FDBootstrap, theirs)
	if o.Console != nil {
		names = addFD(cmd, names, FDConsole, o.Console)
	}
	for _, f := range o.Files {
		names = addFD(cmd, names, f.Name, f.File)
	}
	c := &Child{conn: conn, reports: json.NewDecoder(io.LimitReader(conn, maxReport))}
	if o.Apart {
		closed, gate, err := os.Pipe()
		if err != nil {
			conn.Close()
			return nil, fmt.Errorf("start %s: %w", o.Role, err)
		}
		defer closed.Close()
		c.gate = gate
		names = addFD(cmd, names, fdGate, closed)
		cmd.Env[0] = roleEnv + "=" + apart + string(o.Role)
	}
	cmd.Env = append(cmd.Env, fdsEnv+"="+strings.Join(names, ","))
	if err := startIn(cmd, &o); err != nil {
		conn.Close()
		if c.gate != nil {
			c.gate.Close()
		}
		return nil, fmt.Errorf("start %s: %w", o.Role, err)
	}
	c.Process = cmd.Process
	return c, nil
}

// Release lets a child apart be started, and waits for the one in between.
func (c *Child) Release() error {
	c.gate.Close()
	c.gate = nil
	st, err := c.Process.Wait()
	if err == nil && !st.Success() {
		err = fmt.Errorf("start apart: %s", st)
	}
	return err
}

// IsApart says whether this process is the one in between; StartApart is then all
// there is to do.
func IsApart() bool { return strings.HasPrefix(os.Getenv(roleEnv), apart) }

// StartApart starts the process that this one stands in between of, once it may. It
// returns the exit code.
func StartApart() int {
	fds, err := parseFDs(os.Getenv(fdsEnv))
	if err != nil {
		return 1
	}
	gate := os.NewFile(uintptr(fds[fdGate]), fdGate)
	if _, err := gate.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return 1
	}
	files := []uintptr{0, 1, 2}
	for fd := 3; fd < 3+len(fds); fd++ {
		files = append(files, uintptr(fd))
	}
	role := strings.TrimPrefix(os.Getenv(roleEnv), apart)
	_, err = syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{
		Env:   []string{roleEnv + "=" + role, quiet, fdsEnv + "=" + os.Getenv(fdsEnv)},
		Files: files,
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 1
	}
	return 0
}

// fileOrNil keeps a nil *os.File from becoming a non-nil interface, which
// os/exec would take for a stream to copy.
func fileOrNil(f *os.File) io.Reader {
	if f == nil {
		return nil
	}
	return f
}

func fileOrNilWriter(f *os.File) io.Writer {
	if f == nil {
		return nil
	}
	return f
}

func addFD(cmd *exec.Cmd, names []string, name string, f *os.File) []string {
	const first = 3
	cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	return append(names, name+"="+strconv.Itoa(first+len(cmd.ExtraFiles)-1))
}

// startIn forks from a thread that has joined the namespaces given by path. The
// thread ends with its goroutine, since nothing else may ever run on it.
func startIn(cmd *exec.Cmd, o *Options) error {
	join, user, err := splitNamespaces(cmd, o.Namespaces)
	if err != nil {
		return err
	}
	start := cmd.Start
	switch {
	case user != "":
		start = func() error { return startInUserNS(cmd, user) }
	case cmd.SysProcAttr.Cloneflags&unix.CLONE_NEWUSER != 0:
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = o.UIDMaps, o.GIDMaps
		cmd.SysProcAttr.GidMappingsEnableSetgroups = true
		cmd.SysProcAttr.Credential = &syscall.Credential{}
	}
	if len(join) == 0 {
		return start()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		for _, ns := range join {
			if err := joinNamespace(ns); err != nil {
				done <- err
				return
			}
		}
		done <- start()
	}()
	return <-done
}

// startInUserNS starts a command in a user namespace by path, which only a child
// can join. Its stdio must be files or none.
func startInUserNS(cmd *exec.Cmd, path string) error {
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("join user namespace: %w", err)
	}
	defer ns.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	files := []*os.File{null, null, null}
	for i, stdio := range []any{cmd.Stdin, cmd.Stdout, cmd.Stderr} {
		if f, ok := stdio.(*os.File); ok {
			files[i] = f
		}
	}
	pid, err := nsfork.Start(&nsfork.Request{
		Path: cmd.Path, Args: cmd.Args, Env: cmd.Env, Files: append(files, cmd.ExtraFiles...), Clone: cmd.SysProcAttr.Cloneflags,
		CgroupFD: -1, Joins: []nsfork.Join{{File: ns, Flag: unix.CLONE_NEWUSER}}, Root: true,
	})
	if err != nil {
		return fmt.Errorf("join user namespace %s: %w", path, err)
	}
	cmd.Process, err = os.FindProcess(pid)
	return err
}

func splitNamespaces(cmd *exec.Cmd, all []specs.LinuxNamespace) (join []specs.LinuxNamespace, user string, err error) {
	for _, ns := range all {
		flag := namespaces.Flag(ns.Type)
		switch {
		case flag == 0 || ns.Type == specs.TimeNamespace:
			return nil, "", fmt.Errorf("namespace type %q is not supported on the host", ns.Type)
		case ns.Path == "":
			cmd.SysProcAttr.Cloneflags |= uintptr(flag)
		case ns.Type == specs.MountNamespace:
			return nil, "", fmt.Errorf("joining the mount namespace %s is not supported", ns.Path)
		case ns.Type == specs.UserNamespace:
			user = ns.Path
		default:
			join = append(join, ns)
		}
	}
	return join, user, nil
}

// joinNamespace moves the calling thread; for a pid namespace, its children.
// setns checks that the file is a namespace of the type asked for.
func joinNamespace(ns specs.LinuxNamespace) error {
	fd, err := unix.Open(ns.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("join %s namespace: open %s: %w", ns.Type, ns.Path, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, namespaces.Flag(ns.Type)); err != nil {
		return fmt.Errorf("join %s namespace: setns %s: %w", ns.Type, ns.Path, err)
	}
	return nil
}

// Report is what a child says when it stands, or why it does not.
type Report struct {
	Error string `json:"error,omitempty"`
	// Warnings are for the user, one sentence each.
	Warnings []string `json:"warnings,omitempty"`
	// Phases say where the time went.
	Phases []timings.Phase `json:"phases,omitempty"`
}

// maxReport bounds all that is reported, in bytes: it can hold text from the guest.
const maxReport = 1 << 20

// Expect bounds, from now on, how long all that the child is told and says may take: it
// may be stopped, or hang. 0 is any time.
func (c *Child) Expect(limit time.Duration) {
	var deadline time.Time
	if limit > 0 {
		deadline = time.Now().Add(limit)
	}
	_ = c.conn.SetDeadline(deadline) // of a socket that is open
}

// Bootstrap gives the child what it is to do.
func (c *Child) Bootstrap(v any) error {
	if err := json.NewEncoder(c.conn).Encode(v); err != nil {
		return fmt.Errorf("send bootstrap: %w", err)
	}
	return nil
}

// Wait waits for the report. A child that ends without one is an error that
// says how it ended.
func (c *Child) Wait() (Report, error) {
	var r Report
	err := c.reports.Decode(&r)
	switch {
	case errors.Is(err, io.EOF):
		st, werr := c.Process.Wait()
		if werr != nil {
			return r, fmt.Errorf("read report: child is gone: %w", werr)
		}
		return r, fmt.Errorf("read report: child ended early: %s", st)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return r, fmt.Errorf("process %d has not answered in time: is it stopped, or the host very busy?", c.Process.Pid)
	case err != nil:
		return r, fmt.Errorf("read report: %w", err)
	case r.Error != "":
		return r, errors.New(r.Error)
	}
	return r, nil
}

// WaitPrepared waits until the child has called Prepared; the error is its report.
func (c *Child) WaitPrepared() error {
	_, err := c.Wait()
	return err
}

// Proceed tells a prepared child that this side is done.
func (c *Child) Proceed() error {
	if _, err := c.conn.Write([]byte{proceedByte}); err != nil {
		return fmt.Errorf("proceed: %w", err)
	}
	return nil
}

// Commit tells the child to go on alone.
func (c *Child) Commit() error {
	if _, err := c.conn.Write([]byte{commitByte}); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return c.conn.Close()
}

// Abort ends the child and waits until it is gone.
func (c *Child) Abort() {
	c.conn.Close()
	if c.gate != nil {
		c.gate.Close()
	}
	// The error of a child that has ended already says nothing new.
	_ = c.Process.Kill()
	_, _ = c.Process.Wait()
}
