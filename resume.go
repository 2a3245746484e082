package main

import (
	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/control"
)

var resumeCommand = &cli.Command{
	Name:         "resume",
	Usage:        "let the processes of a paused container run again",
	ArgsUsage:    "<container-id>",
	OnUsageError: usageError,
	Action: func(c *cli.Context) error {
		if err := exactArgs(c, 1); err != nil {
			return err
		}
		_, supervisor, err := control.Open(c.Context, c.String("root"), c.Args().First(), state.Resume)
		if err != nil {
			return err
		}
		defer supervisor.Close()
		_, err = supervisor.Resume(c.Context, &control.ResumeRequest{})
		return control.Error(err)
	},
}
