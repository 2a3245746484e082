package main

import (
	"fmt"
	"runtime"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"
)

var versionCommand = &cli.Command{
	Name:         "version",
	Usage:        "print the version",
	OnUsageError: usageError,
	Action: func(c *cli.Context) error {
		if err := exactArgs(c, 0); err != nil {
			return err
		}
		cli.ShowVersion(c)
		return nil
	},
}

func versionText() string {
	return fmt.Sprintf("husk version %s\ncommit: %s\nspec: %s\ngo: %s\nbuild: %s\n", version, commit, specs.Version, runtime.Version(), build)
}
