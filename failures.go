package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/config"
	"github.com/huskvm/husk/host/failures"
)

var failuresCommand = &cli.Command{
	Name:  "failures",
	Usage: "print why virtual machines ended under their containers, also deleted ones",
	Description: fmt.Sprintf("The last %d are kept for %d days, at most %d of one container. An id may be cut short.",
		failures.MaxCount, failures.MaxAge/(24*time.Hour), failures.MaxOfOne),
	ArgsUsage:    "[container-id]",
	OnUsageError: usageError,
	Flags:        []cli.Flag{formatFlag()},
	Action: func(c *cli.Context) error {
		if err := maxArgs(c, 1); err != nil {
			return err
		}
		settings, err := config.Load(c.String("config"))
		if err != nil {
			return err
		}
		store, err := failures.Open(settings.Failures)
		if err != nil {
			return err
		}
		defer store.Close()
		all, err := store.List(c.Args().First())
		if err != nil {
			return err
		}
		switch c.String("format") {
		case "json":
			if err := json.NewEncoder(c.App.Writer).Encode(all); err != nil {
				return fmt.Errorf("print failures: %w", err)
			}
			return nil
		case "table":
			return printFailures(c.App.Writer, all)
		}
		return errFormat
	},
}

func printFailures(w io.Writer, all []failures.Failure) error {
	for _, f := range all {
		if _, err := fmt.Fprintf(w, "%s %s\n    %s\n", f.Time.Local().Format(time.DateTime), f.ID, f.Cause); err != nil {
			return fmt.Errorf("print failures: %w", err)
		}
		for _, line := range f.Console {
			if _, err := fmt.Fprintf(w, "    | %s\n", line); err != nil {
				return fmt.Errorf("print failures: %w", err)
			}
		}
	}
	return nil
}
