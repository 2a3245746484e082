package main

import (
	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/config"
	"github.com/huskvm/husk/host/report"
	"github.com/huskvm/husk/host/template"
)

var debugReportCommand = &cli.Command{
	Name:         "debug-report",
	Usage:        "print what a maintainer needs to know about this host, for a bug report",
	Description:  "It holds the checks, the settings, the containers' statuses and logs: read it before you send it.",
	OnUsageError: usageError,
	Action: func(c *cli.Context) error {
		if err := exactArgs(c, 0); err != nil {
			return err
		}
		settings, err := config.Load(c.String("config"))
		if err != nil {
			return err
		}
		return report.Write(c.Context, c.App.Writer, report.Options{
			Version: versionText(), ConfigPath: c.String("config"), StateRoot: c.String("root"), Templates: template.StoreOf(settings),
		})
	},
}
