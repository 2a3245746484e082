package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/config"
	"github.com/huskvm/husk/host/create"
)

var createCommand = &cli.Command{
	Name:         "create",
	Usage:        "create a container",
	ArgsUsage:    "<container-id>",
	OnUsageError: usageError,
	Flags:        createFlags,
	Action: func(c *cli.Context) error {
		if err := exactArgs(c, 1); err != nil {
			return err
		}
		opts, err := createOptions(c)
		if err != nil {
			return fmt.Errorf("husk create failed: %w", err)
		}
		opts.Detach = true
		if _, _, err := create.New(c.Context, opts); err != nil {
			return fmt.Errorf("husk create failed: %w", err)
		}
		return nil
	},
}

// createFlags are the flags that create and run have in common.
var createFlags = []cli.Flag{
	&cli.StringFlag{Name: "bundle", Aliases: []string{"b"}, Usage: "`DIR` of the bundle (default: the current directory)"},
	&cli.StringFlag{Name: "console-socket", Usage: "unix `SOCKET` that receives the master of the container's pty"},
	&cli.StringFlag{Name: "pidfd-socket", Usage: "unix `SOCKET` that receives a pidfd of the container's process"},
	&cli.StringFlag{Name: "pid-file", Usage: "`FILE` to write the container's pid to"},
	&cli.BoolFlag{Name: "no-pivot", Usage: "accepted for runc's sake: the guest's rootfs is never the host's"},
	&cli.BoolFlag{Name: "no-new-keyring", Usage: "accepted for runc's sake: the guest has keyrings of its own"},
	&cli.IntFlag{Name: "preserve-fds", Usage: "pass `N` of the caller's descriptors from 3 on to the process, which gets pipes and sockets of the guest in their place"},
}

// createOptions reads the settings and returns the options of createFlags and of the global
// flags. For a container that chose to be another runtime's it does not return: husk is that
// runtime then.
func createOptions(c *cli.Context) (create.Options, error) {
	settings, err := config.Load(c.String("config"))
	if err == nil {
		err = handOverNew(c, settings)
	}
	return create.Options{
		ID: c.Args().First(), Root: c.String("root"), Bundle: c.String("bundle"), Settings: settings,
		ConsoleSocket: c.String("console-socket"), PidfdSocket: c.String("pidfd-socket"), PidFile: c.String("pid-file"),
		PreserveFDs: c.Int("preserve-fds"), SystemdCgroup: c.Bool("systemd-cgroup"), Debug: c.Bool("debug"), Build: build,
	}, err
}
