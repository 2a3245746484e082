package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/config"
)

var configCommand = &cli.Command{
	Name:  "config",
	Usage: "show the settings that hold on this host",
	Subcommands: []*cli.Command{
		{
			Name:         "show",
			Usage:        "print every setting, its value and where the value is from",
			OnUsageError: usageError,
			Flags:        []cli.Flag{formatFlag()},
			Action:       showConfig,
		},
		{
			Name:         "sample",
			Usage:        "print a settings file with every setting explained and commented out",
			OnUsageError: usageError,
			Action: func(c *cli.Context) error {
				if err := exactArgs(c, 0); err != nil {
					return err
				}
				return config.WriteSample(c.App.Writer)
			},
		},
	},
}

func showConfig(c *cli.Context) error {
	if err := exactArgs(c, 0); err != nil {
		return err
	}
	all, err := config.Show(c.String("config"))
	if err != nil {
		return err
	}
	switch c.String("format") {
	case "json":
		return json.NewEncoder(c.App.Writer).Encode(all)
	case "table":
	default:
		return errFormat
	}
	tw := tabwriter.NewWriter(c.App.Writer, 12, 1, 3, ' ', 0)
	fmt.Fprintln(tw, "SETTING\tVALUE\tFROM")
	for _, e := range all {
		value := e.Value
		if value == "" {
			value = e.Default
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\n", e.Key, value, e.From)
	}
	return tw.Flush()
}
