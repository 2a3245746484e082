package main

import (
	"encoding/json"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/check"
)

var checkCommand = &cli.Command{
	Name:         "check",
	Usage:        "say whether this host can run husk's containers, and what to do where not",
	Description:  "Exits with 0 if it can, with 1 if not.",
	OnUsageError: usageError,
	Flags: []cli.Flag{
		&cli.BoolFlag{Name: "json", Usage: "print the report as one JSON object"},
	},
	Action: func(c *cli.Context) error {
		if err := exactArgs(c, 0); err != nil {
			return err
		}
		report := check.Run(c.Context, check.Options{ConfigPath: c.String("config"), StateRoot: c.String("root")})
		if err := printReport(c, report); err != nil {
			return err
		}
		if !report.OK {
			return &exitError{code: exitFailure} // the report has said why
		}
		return nil
	},
}

func printReport(c *cli.Context, report *check.Report) error {
	if !c.Bool("json") {
		return report.Print(c.App.Writer)
	}
	enc := json.NewEncoder(c.App.Writer)
	enc.SetIndent("", "  ")
	if err := enc.Encode(report); err != nil {
		return fmt.Errorf("print report: %w", err)
	}
	return nil
}
