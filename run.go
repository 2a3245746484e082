package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/caller"
	"github.com/huskvm/husk/host/create"
	"github.com/huskvm/husk/host/lifecycle"
	"github.com/huskvm/husk/host/timings"
)

var runCommand = &cli.Command{
	Name:         "run",
	Usage:        "create and start a container",
	ArgsUsage:    "<container-id>",
	OnUsageError: usageError,
	Flags: append([]cli.Flag{
		&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "return once the container runs"},
		&cli.BoolFlag{Name: "keep", Usage: "do not delete the container when it has ended"},
		&cli.BoolFlag{Name: "no-subreaper", Usage: "accepted for runc's sake: husk is no subreaper"},
	}, createFlags...),
	Action: func(c *cli.Context) error {
		if err := exactArgs(c, 1); err != nil {
			return err
		}
		opts, err := createOptions(c)
		if err != nil {
			return fmt.Errorf("husk run failed: %w", err)
		}
		opts.Detach = c.Bool("detach")
		code, err := run(c.Context, opts, c.Bool("keep"))
		if err != nil {
			return fmt.Errorf("husk run failed: %w", err)
		}
		if code != 0 {
			return &exitError{code: code}
		}
		return nil
	},
}

func run(ctx context.Context, opts create.Options, keep bool) (code int, err error) {
	fg, err := caller.NewForeground(opts.Detach)
	if err != nil {
		return 0, err
	}
	defer fg.Close()
	opts.Console = fg.Socket()
	process, terminal, err := create.New(ctx, opts)
	if err != nil {
		return 0, err
	}
	if !opts.Detach {
		err = fg.Attach(process, terminal)
	}
	if err == nil {
		err = lifecycle.Start(ctx, opts.Root, opts.ID)
	}
	if err != nil {
		// It may have ended already, for a reason that its exit code tells.
		if derr := lifecycle.Delete(ctx, opts.Root, opts.ID, true); derr != nil {
			return 0, fmt.Errorf("%w (and it could not be deleted: %w)", err, derr)
		}
		return 0, err
	}
	if opts.Detach {
		return 0, nil
	}
	if code, err = fg.Wait(process); err != nil {
		return 0, err
	}
	timings.Lap(ctx, "the container runs")
	if keep {
		return code, nil
	}
	defer timings.Lap(ctx, "delete")
	return code, lifecycle.Delete(ctx, opts.Root, opts.ID, true)
}
