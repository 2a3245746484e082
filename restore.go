package main

import (
	"github.com/urfave/cli/v2"
)

var restoreCommand = &cli.Command{
	Name:         "restore",
	Usage:        "not supported yet: make a container from a saved one",
	ArgsUsage:    "<container-id>",
	OnUsageError: usageError,
	// lsm-mount-context takes no value here: podman passes none, and takes the error that a
	// value is missing as a sign that containers of pods can be restored.
	Flags: append(ignoredFlags("no-subreaper", "no-pivot", "lazy-pages", "lsm-mount-context"),
		append(criuFlags(),
			&cli.StringFlag{Name: "console-socket", Hidden: true},
			&cli.StringFlag{Name: "bundle", Aliases: []string{"b"}, Hidden: true},
			&cli.StringFlag{Name: "pid-file", Hidden: true},
			&cli.StringFlag{Name: "lsm-profile", Hidden: true},
			&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Hidden: true},
		)...),
	Action: func(c *cli.Context) error {
		if err := minArgs(c, 1); err != nil {
			return err
		}
		return errCheckpoint
	},
}
