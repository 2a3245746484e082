package main

import (
	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/lifecycle"
)

var deleteCommand = &cli.Command{
	Name:         "delete",
	Usage:        "delete what is left of a container",
	ArgsUsage:    "<container-id>",
	OnUsageError: usageError,
	Flags: []cli.Flag{
		&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "kill the container first if it still runs"},
	},
	Action: func(c *cli.Context) error {
		if err := exactArgs(c, 1); err != nil {
			return err
		}
		return lifecycle.Delete(c.Context, c.String("root"), c.Args().First(), c.Bool("force"))
	},
}
