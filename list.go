package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/isolation"
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
		return list(c.App.Writer, describe(c.Context, c.String("root"), containers), c.String("format"), c.Bool("quiet"))
	},
}

// describe leaves out containers that another runtime had and has deleted. It returns nil if
// there are none, for which runc prints `null`.
func describe(ctx context.Context, root string, containers []*state.Container) (all []state.Description) {
	for _, c := range containers {
		d := state.Describe(c)
		if c.HandedTo != nil {
			var err error
			if d, err = isolation.Describe(ctx, root, c); errors.Is(err, state.ErrNotExist) {
				continue
			} else if err != nil {
				logrus.Warn(err)
				d = state.Describe(c)
			}
		}
		all = append(all, d)
	}
	return all
}

func list(w io.Writer, all []state.Description, format string, quiet bool) error {
	if quiet {
		// As with runc, the format does not matter then.
		for _, d := range all {
			if _, err := fmt.Fprintln(w, d.ID); err != nil {
				return fmt.Errorf("print list: %w", err)
			}
		}
		return nil
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

// listTable prints runc's columns with runc's widths, because scripts cut them.
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
