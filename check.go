package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/check"
	"github.com/huskvm/husk/host/specconv"
)

var checkCommand = &cli.Command{
	Name:         "check",
	Usage:        "say whether this host can run husk's containers, and what to do where not",
	Description:  "Exits with 0 if it can, with 1 if not.",
	OnUsageError: usageError,
	Flags: []cli.Flag{
		&cli.BoolFlag{Name: "json", Usage: "print the report as one JSON object"},
		&cli.BoolFlag{Name: "run", Usage: "when all is well, run a container that prints the kernel it sees"},
		&cli.BoolFlag{Name: insideFlag, Hidden: true, Usage: "print the release of the kernel this runs on: what the container of --run does"},
	},
	Action: func(c *cli.Context) error {
		if err := exactArgs(c, 0); err != nil {
			return err
		}
		if c.Bool(insideFlag) {
			return printKernel(c)
		}
		trial, err := trialRun(c)
		if err != nil {
			return err
		}
		report := check.Run(c.Context, check.Options{ConfigPath: c.String("config"), StateRoot: c.String("root"), Trial: trial})
		if err := printReport(c, report); err != nil {
			return err
		}
		if !report.OK {
			return &exitError{code: exitFailure} // the report has said why
		}
		return nil
	},
}

// insideFlag is passed to husk inside the container of --run.
const insideFlag = "inside"

// trialRun returns the container that --run asks for, nil without --run.
func trialRun(c *cli.Context) (*check.Trial, error) {
	if !c.Bool("run") {
		return nil, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find husk's own path: %w", err)
	}
	trial := &check.Trial{Spec: specconv.Example(), Self: self, Inside: []string{"check", "--" + insideFlag}}
	if path := c.String("config"); path != "" {
		trial.Global = []string{"--config", path}
	}
	return trial, nil
}

func printKernel(c *cli.Context) error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return os.NewSyscallError("uname", err)
	}
	_, err := fmt.Fprintln(c.App.Writer, unix.ByteSliceToString(name.Release[:]))
	return err
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
