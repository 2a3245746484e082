package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/state"
)

var listCommand = &cli.Command{
	Name:         "list",
	Usage:        "list the containers below --root",
	OnUsageError: usageError,
	Flags: []cli.Flag{
		formatFlag(),
		&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print only ids"},
	},
	Action: func(c *cli.Context) error {
		if err := exactArgs(c, 0); err != nil {
			return err
		}
		containers, broken, err := state.List(c.String("root"))
		if err != nil {
			return err
		}
		for _, err := range broken {
			logrus.Warn(err)
		}
		return list(c.App.Writer, containers, c.String("format"), c.Bool("quiet"))
	},
}

func list(w io.Writer, containers []*state.Container, format string, quiet bool) error {
	if quiet {
		// As in runc, the format does not matter then.
		for _, c := range containers {
			if _, err := fmt.Fprintln(w, c.ID); err != nil {
				return fmt.Errorf("print list: %w", err)
			}
		}
		return nil
	}
	// Nil without containers, for runc's `null`.
	var all []state.Description
	for _, c := range containers {
		all = append(all, state.Describe(c))
	}
	switch format {
	case "table":
		return listTable(w, all)
	case "json":
		if err := json.NewEncoder(w).Encode(all); err != nil {
			return fmt.Errorf("print list: %w", err)
		}
		return nil
	}
	return errFormat
}

// listTable prints runc's columns in runc's widths: scripts cut them.
func listTable(w io.Writer, all []state.Description) error {
	const minWidth, tabWidth, padding = 12, 1, 3
	t := tabwriter.NewWriter(w, minWidth, tabWidth, padding, ' ', 0)
	fmt.Fprint(t, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER\n")
	for _, d := range all {
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\n",
			d.ID, d.PID, d.Status, d.Bundle, d.Created.Format(time.RFC3339Nano), d.Owner)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print list: %w", err)
	}
	return nil
}
