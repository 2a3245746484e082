package main

import (
	"fmt"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

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
		code, err := run(c, c.Args().First(), c.Bool("detach"))
		if err != nil {
			return fmt.Errorf("husk run failed: %w", err)
		}
		if code != 0 {
			return &exitError{code: code}
		}
		return nil
	},
}

func run(c *cli.Context, id string, detach bool) (code int, err error) {
	fg, err := newForeground(detach)
	if err != nil {
		return 0, err
	}
	defer fg.Close()
	process, terminal, err := newContainer(c, id, detach, fg.socket())
	if err != nil {
		return 0, err
	}
	if !detach {
		err = fg.attach(process, terminal)
	}
	if err == nil {
		err = startAndHooks(c, id)
	}
	if err != nil {
		// It can have ended already, for a reason its exit code tells.
		if derr := destroy(c, id, true); derr != nil {
			return 0, fmt.Errorf("%w (and it could not be deleted: %w)", err, derr)
		}
		return 0, err
	}
	if detach {
		return 0, nil
	}
	if code, err = fg.wait(process); err != nil {
		return 0, err
	}
	timings.Lap(c.Context, "the container runs")
	if c.Bool("keep") {
		return code, nil
	}
	defer timings.Lap(c.Context, "delete")
	return code, destroy(c, id, true)
}

// exitCode is a shell's: 128+n after signal n.
func exitCode(st *os.ProcessState) int {
	if ws, ok := st.Sys().(unix.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return st.ExitCode()
}
