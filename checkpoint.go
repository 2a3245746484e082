package main

import (
	"errors"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/state"
)

var errCheckpoint = errors.New("checkpoint is not supported: husk cannot save a virtual machine yet")

// The flags of runc's checkpoint and restore are known, so that the error is about the verb and
// not about the first flag.
var checkpointCommand = &cli.Command{
	Name:         "checkpoint",
	Usage:        "not supported yet: save a running container",
	ArgsUsage:    "<container-id>",
	OnUsageError: usageError,
	Flags: append(ignoredFlags("leave-running", "lazy-pages", "pre-dump"),
		append(criuFlags(),
			&cli.StringFlag{Name: "parent-path", Hidden: true},
			&cli.StringFlag{Name: "page-server", Hidden: true},
			&cli.IntFlag{Name: "status-fd", Hidden: true, Value: -1},
		)...),
	Action: func(c *cli.Context) error {
		if err := exactArgs(c, 1); err != nil {
			return err
		}
		if _, err := state.Find(c.String("root"), c.Args().First()); err != nil {
			return err
		}
		return errCheckpoint
	},
}

// refuseHelp answers a request for help of checkpoint or restore. podman takes an exit code of
// 0, which the library would give, as a sign that they are supported.
func refuseHelp(c *cli.Context) error {
	verb := c.Args().First()
	if verb != checkpointCommand.Name && verb != restoreCommand.Name {
		return nil
	}
	if !slices.ContainsFunc(c.Args().Tail(), func(a string) bool { return a == "--help" || a == "-help" || a == "-h" }) {
		return nil
	}
	if err := cli.ShowCommandHelp(c, verb); err != nil {
		return err
	}
	return errCheckpoint
}

// criuFlags returns the flags that both verbs have.
func criuFlags() []cli.Flag {
	return append(ignoredFlags("tcp-established", "ext-unix-sk", "shell-job", "file-locks", "auto-dedup",
		"link-remap", "skip-in-flight"),
		&cli.StringFlag{Name: "image-path", Hidden: true},
		&cli.StringFlag{Name: "work-path", Hidden: true},
		&cli.StringFlag{Name: "manage-cgroups-mode", Hidden: true},
		&cli.StringSliceFlag{Name: "empty-ns", Hidden: true},
	)
}

func ignoredFlags(names ...string) []cli.Flag {
	var flags []cli.Flag
	for _, n := range names {
		flags = append(flags, &cli.BoolFlag{Name: n, Hidden: true})
	}
	return flags
}
