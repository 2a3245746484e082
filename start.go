package main

import (
	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/hooks"
	"github.com/huskvm/husk/state"
	"github.com/huskvm/husk/supervisor/control"
	"github.com/huskvm/husk/timings"
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
		return start(c, c.Args().First())
	},
}

// start releases a created container's process and runs its poststart hooks.
func start(c *cli.Context, id string) error {
	container, supervisor, err := connect(c, id, state.Start)
	if err != nil {
		return err
	}
	defer supervisor.Close()
	timings.Lap(c.Context, "connect to supervisor")
	resp, err := supervisor.Start(c.Context, &control.StartRequest{})
	if err != nil {
		return control.Error(err)
	}
	timings.From(c.Context).Add(control.Phases(resp.Phases)...)
	timings.Lap(c.Context, "start")
	st := container.OCI(state.Running)
	return hooks.Run(c.Context, hooks.Of(container.Hooks).Poststart, "poststart", st, st.Bundle)
}
