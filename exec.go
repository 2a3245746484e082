package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/execprocess"
	"github.com/huskvm/husk/host/supervisor/launch"
)

var execCommand = &cli.Command{
	Name:         "exec",
	Usage:        "run one more process in a container",
	ArgsUsage:    "<container-id> <command> [arguments]  |  --process FILE <container-id>",
	OnUsageError: usageError,
	Flags: []cli.Flag{
		&cli.StringFlag{Name: "console-socket", Usage: "unix `SOCKET` that receives the master of the process's pty"},
		&cli.StringFlag{Name: "pidfd-socket", Usage: "unix `SOCKET` that receives a pidfd of the process"},
		&cli.StringFlag{Name: "cwd", Usage: "working directory"},
		&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "environment variable `NAME=VALUE`"},
		&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "give the process a terminal"},
		&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "`UID[:GID]`"},
		&cli.Int64SliceFlag{Name: "additional-gids", Aliases: []string{"g"}, Usage: "additional group ids"},
		&cli.StringFlag{Name: "process", Aliases: []string{"p"}, Usage: "`FILE` with the process as JSON (runtime-spec)"},
		&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "return once the process runs"},
		&cli.StringFlag{Name: "pid-file", Usage: "`FILE` to write the process's pid to"},
		&cli.StringFlag{Name: "process-label", Usage: "SELinux label"},
		&cli.StringFlag{Name: "apparmor", Usage: "AppArmor profile"},
		&cli.BoolFlag{Name: "no-new-privs", Usage: "set no_new_privs"},
		&cli.StringSliceFlag{Name: "cap", Aliases: []string{"c"}, Usage: "add a capability"},
		&cli.IntFlag{Name: "preserve-fds", Usage: "pass `N` of the caller's descriptors from 3 on to the process, which gets pipes and sockets of the guest in their place"},
		&cli.StringSliceFlag{Name: "cgroup", Usage: "refused: a process joins the container's cgroup"},
		&cli.BoolFlag{Name: "ignore-paused", Usage: "allow exec in a paused container"},
	},
	Action: func(c *cli.Context) error {
		if err := minArgs(c, 1); err != nil {
			return err
		}
		code, err := execute(c, c.Args().First())
		if err != nil {
			return &exitError{code: exitExec, err: fmt.Errorf("exec failed: %w", err)}
		}
		if code != 0 {
			return &exitError{code: code}
		}
		return nil
	},
}

func execute(c *cli.Context, id string) (code int, err error) {
	dir, err := state.Open(c.String("root"), id)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	container, err := dir.Load()
	if err != nil {
		return 0, err
	}
	status := container.Status()
	if err := state.Allowed(state.Exec, id, status); err != nil && (!c.Bool("ignore-paused") || status != state.Paused) {
		return 0, err
	}
	process, warnings, err := execSpec(c, container.Process)
	if err != nil {
		return 0, err
	}
	detach := c.Bool("detach")
	if err := checkTerminal(process.Terminal, detach, c.String("console-socket") != ""); err != nil {
		return 0, err
	}
	fg, err := newForeground(detach)
	if err != nil {
		return 0, err
	}
	defer fg.Close()
	console, err := dialConsole(c.String("console-socket"), fg.socket())
	if err != nil {
		return 0, err
	}
	child, err := startExec(c, dir, container, process, console)
	if err != nil {
		return 0, err
	}
	for _, w := range warnings {
		logrus.Warn(w)
	}
	if detach {
		return 0, nil
	}
	if err := fg.attach(child.Process, process.Terminal); err != nil {
		return 0, err
	}
	return fg.wait(child.Process)
}

// startExec makes the exec process, in the supervisor's namespaces, and returns
// when the process in the guest runs.
func startExec(c *cli.Context, dir *state.Dir, container *state.Container, process *specs.Process, console *os.File) (_ *launch.Child, err error) {
	if err = makeRoom(c.Context, dir, container); err != nil {
		return nil, err
	}
	opts := launch.Options{
		Role: launch.Exec, Args: process.Args, Console: console,
		Namespaces: supervisorNamespaces(container.Supervisor.PID),
	}
	kinds, files, err := passedDescriptors(c, 0)
	if err != nil {
		return nil, err
	}
	opts.Files = files
	defer closeFiles(files)
	if !process.Terminal {
		opts.Stdin, opts.Stdout, opts.Stderr = os.Stdin, os.Stdout, os.Stderr
	}
	child, err := launch.Start(opts)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			child.Abort()
		}
	}()
	boot := execprocess.Bootstrap{
		StateDir: dir.Path, ContainerID: container.ID, SupervisorPID: container.Supervisor.PID,
		Terminal: process.Terminal, ConsoleSize: process.ConsoleSize, IgnorePaused: c.Bool("ignore-paused"), BareNewlines: !c.Bool("detach"),
		Descriptors: kinds, Detach: c.Bool("detach"),
	}
	if boot.Self, err = state.ProcessOf(child.Process.Pid); err != nil {
		return nil, err
	}
	if boot.Process, err = json.Marshal(process); err != nil {
		return nil, fmt.Errorf("encode process: %w", err)
	}
	if !boot.IgnorePaused { // which waits until the container is resumed
		child.Expect(2 * supervisorTimeout)
	}
	if err = child.Bootstrap(boot); err != nil {
		return nil, err
	}
	// Meanwhile: an exec process has no child that would have to be born there, and
	// the kernel takes its time over a move.
	if container.Cgroup != nil {
		if err = container.Cgroup.Add(child.Process.Pid); err != nil {
			return nil, err
		}
	}
	if _, err = child.Wait(); err != nil {
		return nil, fmt.Errorf("unable to start container process: %w", err)
	}
	if err = sendPidfd(c.String("pidfd-socket"), child.Process.Pid, pidfdExec); err != nil {
		return nil, err
	}
	if path := c.String("pid-file"); path != "" {
		if err = writePIDFile(path, child.Process.Pid); err != nil {
			return nil, err
		}
	}
	return child, child.Commit()
}

// supervisorNamespaces are joined by the exec process as it is made; its mount
// namespace it enters itself, at the end.
func supervisorNamespaces(hostPID int) []specs.LinuxNamespace {
	files := []struct {
		kind specs.LinuxNamespaceType
		name string
	}{
		{specs.PIDNamespace, "pid"},
		{specs.NetworkNamespace, "net"},
		{specs.IPCNamespace, "ipc"},
		{specs.UTSNamespace, "uts"},
		{specs.CgroupNamespace, "cgroup"},
	}
	var all []specs.LinuxNamespace
	for _, f := range files {
		all = append(all, specs.LinuxNamespace{Type: f.kind, Path: fmt.Sprintf("/proc/%d/ns/%s", hostPID, f.name)})
	}
	return all
}

// execSpec is the process to run: of the file given, or the container's own
// process changed by the flags, as runc does it.
func execSpec(c *cli.Context, own *specs.Process) (*specs.Process, []string, error) {
	if len(c.StringSlice("cgroup")) > 0 {
		return nil, nil, errors.New("--cgroup: a process joins the container's cgroup in the guest, no other is supported")
	}
	var p *specs.Process
	var err error
	if path := c.String("process"); path != "" {
		p, err = specconv.LoadProcess(path)
	} else {
		p, err = flagProcess(c, own)
	}
	if err != nil {
		return nil, nil, err
	}
	guest, warnings, err := specconv.ConvertProcess(p)
	if err != nil {
		return nil, nil, err
	}
	limits, err := callersRlimits()
	if err != nil {
		return nil, nil, err
	}
	specconv.InheritRlimits(guest, limits)
	return guest, warnings, nil
}

func flagProcess(c *cli.Context, own *specs.Process) (*specs.Process, error) {
	if c.NArg() < 2 {
		return nil, errors.New("process args cannot be empty")
	}
	if own == nil {
		return nil, errors.New("the container's own process is not known: use --process")
	}
	p := *own
	p.Args = c.Args().Slice()[1:]
	p.Terminal = c.Bool("tty")
	p.ConsoleSize = nil
	p.Env = append(append([]string{}, own.Env...), c.StringSlice("env")...)
	if cwd := c.String("cwd"); cwd != "" {
		p.Cwd = cwd
	}
	if label := c.String("process-label"); label != "" {
		p.SelinuxLabel = label
	}
	if profile := c.String("apparmor"); profile != "" {
		p.ApparmorProfile = profile
	}
	if c.IsSet("no-new-privs") {
		p.NoNewPrivileges = c.Bool("no-new-privs")
	}
	addCapabilities(&p, c.StringSlice("cap"))
	if err := setUser(&p, c.String("user")); err != nil {
		return nil, err
	}
	for _, gid := range c.Int64Slice("additional-gids") {
		if gid < 0 || gid > int64(^uint32(0)) {
			return nil, fmt.Errorf("additional gid %d is out of range", gid)
		}
		p.User.AdditionalGids = append(append([]uint32{}, p.User.AdditionalGids...), uint32(gid))
	}
	return &p, nil
}

// addCapabilities adds to the sets a process can use at once, as runc does: to the
// ambient ones only where the container has inheritable ones, without which there
// are none.
func addCapabilities(p *specs.Process, names []string) {
	if len(names) == 0 {
		return
	}
	caps := specs.LinuxCapabilities{}
	if p.Capabilities != nil {
		caps = *p.Capabilities
	}
	sets := []*[]string{&caps.Bounding, &caps.Effective, &caps.Permitted}
	if caps.Inheritable != nil {
		sets = append(sets, &caps.Ambient)
	}
	for _, set := range sets {
		*set = append(append([]string{}, *set...), names...)
	}
	p.Capabilities = &caps
}

func setUser(p *specs.Process, s string) error {
	if s == "" {
		return nil
	}
	uid, gid, hasGID := strings.Cut(s, ":")
	n, err := strconv.ParseUint(uid, 10, 32)
	if err != nil {
		return fmt.Errorf("parsing %s as int for uid failed: %w", uid, err)
	}
	p.User.UID = uint32(n)
	if !hasGID {
		return nil
	}
	if n, err = strconv.ParseUint(gid, 10, 32); err != nil {
		return fmt.Errorf("parsing %s as int for gid failed: %w", gid, err)
	}
	p.User.GID = uint32(n)
	return nil
}
