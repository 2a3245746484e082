package main

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

var uninstallCommand = &cli.Command{
	Name:         "uninstall",
	Usage:        "take husk out of an engine's configuration",
	ArgsUsage:    "<engine>",
	OnUsageError: usageError,
	Flags:        installFlags(),
	Action: func(c *cli.Context) error {
		engine, err := engineArg(c)
		if err != nil {
			return err
		}
		change, err := engine.Remove(c.String("file"))
		if err != nil {
			return fmt.Errorf("uninstall from %s: %w", engine.Name, err)
		}
		return applyChange(c, engine, change, "")
	},
}
