package main

import (
	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/lifecycle"
)

var startCommand = &cli.Command{
	Name:         "start",
	Usage:        "run the process of a created container",
	ArgsUsage:    "<container-id>",
	OnUsageError: usageError,
	Action: func(c *cli.Context) error {
		if err := exactArgs(c, 1); err != nil {
			return err
		}
		return lifecycle.Start(c.Context, c.String("root"), c.Args().First())
	},
}
