package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/caller"
	"github.com/huskvm/husk/host/exec"
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
		code, err := execute(c)
		if err != nil {
			return &exitError{code: exitExec, err: fmt.Errorf("exec failed: %w", err)}
		}
		if code != 0 {
			return &exitError{code: code}
		}
		return nil
	},
}

func execute(c *cli.Context) (code int, err error) {
	opts := execOptions(c)
	fg, err := caller.NewForeground(opts.Detach)
	if err != nil {
		return 0, err
	}
	defer fg.Close()
	opts.Console = fg.Socket()
	process, terminal, err := exec.Start(c.Context, opts)
	if err != nil || opts.Detach {
		return 0, err
	}
	if err := fg.Attach(process, terminal); err != nil {
		return 0, err
	}
	return fg.Wait(process)
}

func execOptions(c *cli.Context) exec.Options {
	o := exec.Options{
		ID: c.Args().First(), Root: c.String("root"), Detach: c.Bool("detach"),
		ConsoleSocket: c.String("console-socket"), PidfdSocket: c.String("pidfd-socket"), PidFile: c.String("pid-file"),
		PreserveFDs: c.Int("preserve-fds"), IgnorePaused: c.Bool("ignore-paused"), Cgroups: c.StringSlice("cgroup"),
		Process: exec.Process{
			File: c.String("process"), Args: c.Args().Tail(), Terminal: c.Bool("tty"), Env: c.StringSlice("env"),
			Cwd: c.String("cwd"), User: c.String("user"), AdditionalGIDs: c.Int64Slice("additional-gids"),
			Capabilities: c.StringSlice("cap"), SelinuxLabel: c.String("process-label"), ApparmorProfile: c.String("apparmor"),
		},
	}
	if c.IsSet("no-new-privs") {
		set := c.Bool("no-new-privs")
		o.Process.NoNewPrivileges = &set
	}
	return o
}
