package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/lifecycle"
)

var killCommand = &cli.Command{
	Name:         "kill",
	Usage:        "send a signal (default: SIGTERM) to the container's process",
	ArgsUsage:    "<container-id> [signal]",
	OnUsageError: usageError,
	Flags: []cli.Flag{
		&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "send the signal to every process of the container"},
	},
	Action: func(c *cli.Context) error {
		if err := minArgs(c, 1); err != nil {
			return err
		}
		if err := maxArgs(c, 2); err != nil {
			return err
		}
		sig := unix.SIGTERM
		if c.NArg() > 1 {
			var err error
			if sig, err = parseSignal(c.Args().Get(1)); err != nil {
				return err
			}
		}
		return lifecycle.Kill(c.Context, c.String("root"), c.Args().First(), sig, c.Bool("all"))
	},
}

// maxSignal is the highest real-time signal, signal(7).
const maxSignal = 64

// parseSignal parses a number, or a name with or without SIG, in any case. 0 only tests whether
// the container exists.
func parseSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 0 || n > maxSignal {
			return 0, fmt.Errorf("unable to signal init: %w", unix.EINVAL)
		}
		return unix.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	if sig, ok := realTime(name); ok {
		return sig, nil
	}
	return 0, fmt.Errorf("unknown signal %q", s)
}

// realTime parses SIGRTMIN, SIGRTMIN+n, SIGRTMAX and SIGRTMAX-n. glibc uses the first two
// real-time signals itself, so SIGRTMIN is 34.
func realTime(name string) (unix.Signal, bool) {
	const first = 34
	base, sign := first, 1
	var rest string
	switch {
	case strings.HasPrefix(name, "SIGRTMIN"):
		rest = strings.TrimPrefix(name, "SIGRTMIN")
	case strings.HasPrefix(name, "SIGRTMAX"):
		base, sign, rest = maxSignal, -1, strings.TrimPrefix(name, "SIGRTMAX")
	default:
		return 0, false
	}
	if rest == "" {
		return unix.Signal(base), true
	}
	n, err := strconv.Atoi(rest)
	if err != nil || n*sign < 0 {
		return 0, false
	}
	sig := base + n
	return unix.Signal(sig), sig >= first && sig <= maxSignal
}
