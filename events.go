package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/control"
)

const defaultInterval = 5 * time.Second // runc's

var eventsCommand = &cli.Command{
	Name:         "events",
	Usage:        "print what a container uses, one JSON object a line, until it stops",
	ArgsUsage:    "<container-id>",
	OnUsageError: usageError,
	Flags: []cli.Flag{
		&cli.DurationFlag{Name: "interval", Value: defaultInterval, Usage: "`TIME` between two lines"},
		&cli.BoolFlag{Name: "stats", Usage: "print one line, at once, and end"},
	},
	Action: func(c *cli.Context) error {
		if err := exactArgs(c, 1); err != nil {
			return err
		}
		id := c.Args().First()
		container, dir, err := state.OpenFor(state.Events, c.String("root"), id)
		if err != nil {
			return err
		}
		defer dir.Close()
		interval := c.Duration("interval")
		if interval <= 0 {
			return errors.New("duration interval must be greater than 0")
		}
		if c.Bool("stats") {
			return printStats(c.Context, c.App.Writer, dir, container)
		}
		return followStats(c.Context, c.App.Writer, dir, container, interval)
	},
}

// event has the form of runc's events (types/events.go).
type event struct {
	Type string          `json:"type"`
	ID   string          `json:"id"`
	Data json.RawMessage `json:"data,omitempty"`
}

// printStats connects only for this line: a supervisor waits for connected callers before it
// ends, so nobody should stay connected without a question.
func printStats(ctx context.Context, w io.Writer, dir *state.Dir, container *state.Container) error {
	supervisor, err := control.ConnectFor(ctx, dir, container, state.Events)
	if err != nil {
		return err
	}
	defer supervisor.Close()
	resp, err := supervisor.Stats(ctx, &control.StatsRequest{})
	if err != nil {
		return control.Error(err)
	}
	if err := json.NewEncoder(w).Encode(event{Type: "stats", ID: container.ID, Data: resp.Stats}); err != nil {
		return fmt.Errorf("print stats: %w", err)
	}
	return nil
}

// followStats prints a line at each tick. It returns nil when the container has stopped.
func followStats(ctx context.Context, w io.Writer, dir *state.Dir, container *state.Container, interval time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- container.Supervisor.Wait(ctx) }()
	ooms := make(chan struct{})
	go followOOM(ctx, dir, container, ooms)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			select {
			case <-ooms: // an event of the kill that ended it
				return errors.Join(err, printOOM(w, container))
			default:
				return err
			}
		case <-ooms:
			if err := printOOM(w, container); err != nil {
				return err
			}
			continue
		case <-tick.C:
		}
		err := printStats(ctx, w, dir, container)
		if err == nil {
			continue
		}
		// The container may have stopped while its supervisor still has output that nobody has
		// read.
		if hasStopped(dir) {
			return nil // the reason why stats failed
		}
		return err
	}
}

func printOOM(w io.Writer, container *state.Container) error {
	if err := json.NewEncoder(w).Encode(event{Type: "oom", ID: container.ID}); err != nil {
		return fmt.Errorf("print event: %w", err)
	}
	return nil
}

// followOOM sends a value for each time at which the guest has killed processes because memory
// was short, until the container ends.
func followOOM(ctx context.Context, dir *state.Dir, container *state.Container, ooms chan<- struct{}) {
	supervisor, err := control.ConnectFor(ctx, dir, container, control.AwaitOOM)
	if err != nil {
		return // it has ended, or the error appears when stats are asked for
	}
	defer supervisor.Close()
	var seen uint64
	for {
		resp, err := supervisor.AwaitOOM(ctx, &control.AwaitOOMRequest{Seen: seen})
		if err != nil || resp.Kills <= seen {
			return
		}
		seen = resp.Kills
		select {
		case ooms <- struct{}{}:
		case <-ctx.Done():
			return
		}
	}
}

// hasStopped is also true for a container that was deleted.
func hasStopped(dir *state.Dir) bool {
	c, err := dir.Load()
	return err != nil || c.Status() == state.Stopped
}
