package main

import (
	"encoding/json"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/state"
)

var stateCommand = &cli.Command{
	Name:         "state",
	Usage:        "print the state of a container as JSON",
	ArgsUsage:    "<container-id>",
	OnUsageError: usageError,
	Action: func(c *cli.Context) error {
		if err := exactArgs(c, 1); err != nil {
			return err
		}
		container, err := state.Find(c.String("root"), c.Args().First())
		if err != nil {
			return err
		}
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(state.Describe(container))
	},
}
