// Package launch re-executes husk as a process that outlives the cli, such as a supervisor or
// an exec process, and connects the two until the new process works by itself.
//
// The messages, in this order: the parent sends one bootstrap; the child sends one report; the
// parent sends one commit. If the parent has something to do in between, the child says that it
// is prepared, and the parent says when to proceed, both before the report. A child whose
// parent ends before the commit must end too, so that a cli that is killed during create leaves
// nothing running.
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

// Role is the role of a re-executed husk.
type Role string

// The roles.
const (
	Supervisor Role = "supervisor"
	Exec       Role = "exec"
	// StandIn is the container's pid in place of its supervisor.
	StandIn Role = "stand-in"
	Hog     Role = "hog" // not started by this package: see host/supervisor/hog
)

// apart is the prefix of the role of a process that only starts the process with that role.
const apart = "apart:"

// The environment of a re-executed husk: its role, and the names of its descriptors in the form
// "bootstrap=3,console=4".
const (
	roleEnv = "_HUSK_ROLE"
	fdsEnv  = "_HUSK_FDS"
)

// Names of passed descriptors.
const (
	FDBootstrap = "bootstrap" // JSON documents in both directions
	FDConsole   = "console"   // the connected console socket of the engine
	fdGate      = "gate"      // end of file: a process apart may be started
)

// None of these equals the newline that ends a JSON document.
const (
	proceedByte = 'P'
	commitByte  = 'C'
)

// CurrentRole returns the role in which this process was re-executed, or "" for a cli.
func CurrentRole() Role { return Role(os.Getenv(roleEnv)) }

// quiet reduces the output of a crash to one line, because stderr of a re-executed husk is the
// container's or a user's terminal.
const quiet = "GOTRACEBACK=none"

// Environment returns the environment of a re-executed husk that gets no descriptors.
func Environment(role Role) []string { return []string{roleEnv + "=" + string(role), quiet} }

// Options say how to start a child.
type Options struct {
	Role Role
	// Args become the child's argv. They are the container's, so that ps on the host shows what
	// runs inside.
	Args []string
	// Namespaces are the child's namespaces: new ones, or joined by path. Mount namespaces
	// cannot be joined here.
	Namespaces []specs.LinuxNamespace
	// UIDMaps and GIDMaps are the mappings of a new user namespace. The child is root in its
	// user namespace.
	UIDMaps, GIDMaps []syscall.SysProcIDMap
	// DoubleFork starts the child from a process in between, which then ends, so the first process
	// of its pid namespace becomes the child's parent and reaps it, and not the caller. The
	// child exists only after Child.Release; until then the process in between, Child.Process,
	// may be moved into a cgroup.
	DoubleFork bool
	// Stdin, Stdout and Stderr are inherited; nil means /dev/null.
	Stdin, Stdout, Stderr *os.File
	// Console is passed under the name FDConsole if it is not nil.
	Console *os.File
	// Files are passed by name. The child gets them from Parent.File.
	Files []NamedFile
}

// NamedFile is a descriptor to pass.
type NamedFile struct {
	Name string // without a comma or an equals sign
	File *os.File
}

// CloseFiles closes files after they were passed, or if they are not passed.
func CloseFiles(files []NamedFile) {
	for _, f := range files {
		f.File.Close()
	}
}

// Child is a re-executed husk, as its parent sees it.
type Child struct {
	Process *os.Process
	conn    net.Conn
	reports *json.Decoder
	gate    *os.File // of a child apart, until it is released
}

// Start re-executes husk. The child waits for its bootstrap. The program must have locked its
// main goroutine to the main thread: the thread that joins other namespaces in order to fork
// has to end, and the main thread cannot.
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
		// The child has a session of its own, so that ^C on the terminal of a foreground run
		// reaches only the cli, which forwards it once.
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
	if o.DoubleFork {
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

// Release lets a child apart be started, and waits for the process in between.
func (c *Child) Release() error {
	c.gate.Close()
	c.gate = nil
	st, err := c.Process.Wait()
	if err == nil && !st.Success() {
		err = fmt.Errorf("start apart: %s", st)
	}
	return err
}

// IsApart says whether this process is the one in between. Then StartApart is all that it has
// to do.
func IsApart() bool { return strings.HasPrefix(os.Getenv(roleEnv), apart) }

// StartApart starts the child of this process in between, when it is released. It returns the
// exit code.
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

// fileOrNil returns a nil interface for a nil *os.File. os/exec would otherwise take it for a
// stream to copy.
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

// startIn forks from a thread that has joined the namespaces with a path. The thread ends with
// its goroutine, because no other code may run on it.
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

// startInUserNS starts a command in a user namespace with a path, which only a child can join.
// The command's stdio must be files or nil.
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

// joinNamespace moves the calling thread into a namespace; with a pid namespace, the thread's
// children. setns checks that the file is a namespace of the right type.
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

// Report is what a child sends when it is ready, or the reason why it is not.
type Report struct {
	Error string `json:"error,omitempty"`
	// Warnings are for the user, one sentence each.
	Warnings []string `json:"warnings,omitempty"`
	// Phases say how long the parts of the start took.
	Phases []timings.Phase `json:"phases,omitempty"`
}

// maxReport bounds the report, in bytes. It may contain text from the guest.
const maxReport = 1 << 20

// Expect bounds the time of all further messages to and from the child, which may be stopped or
// hang. 0 means no limit.
func (c *Child) Expect(limit time.Duration) {
	var deadline time.Time
	if limit > 0 {
		deadline = time.Now().Add(limit)
	}
	_ = c.conn.SetDeadline(deadline) // the socket is open, so it cannot fail
}

// Bootstrap sends the child what it has to do.
func (c *Child) Bootstrap(v any) error {
	if err := json.NewEncoder(c.conn).Encode(v); err != nil {
		return fmt.Errorf("send bootstrap: %w", err)
	}
	return nil
}

// Wait waits for the report. If the child ends without a report, the error says how it has
// ended.
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

// WaitPrepared waits until the child has called Prepared. Its error is that of the child's
// report.
func (c *Child) WaitPrepared() error {
	_, err := c.Wait()
	return err
}

// Proceed tells a prepared child to go on.
func (c *Child) Proceed() error {
	if _, err := c.conn.Write([]byte{proceedByte}); err != nil {
		return fmt.Errorf("proceed: %w", err)
	}
	return nil
}

// Commit tells the child to go on without its parent.
func (c *Child) Commit() error {
	if _, err := c.conn.Write([]byte{commitByte}); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return c.conn.Close()
}

// Abort kills the child and waits until it has ended.
func (c *Child) Abort() {
	c.conn.Close()
	if c.gate != nil {
		c.gate.Close()
	}
	// The child may have ended already.
	_ = c.Process.Kill()
	_, _ = c.Process.Wait()
}
