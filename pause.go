package main

import (
	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/control"
)

var pauseCommand = &cli.Command{
	Name:         "pause",
	Usage:        "suspend every process of a container",
	ArgsUsage:    "<container-id>",
	OnUsageError: usageError,
	Action: func(c *cli.Context) error {
		if err := exactArgs(c, 1); err != nil {
			return err
		}
		_, supervisor, err := control.Open(c.Context, c.String("root"), c.Args().First(), state.Pause)
		if err != nil {
			return err
		}
		defer supervisor.Close()
		_, err = supervisor.Pause(c.Context, &control.PauseRequest{})
		return control.Error(err)
	},
}
