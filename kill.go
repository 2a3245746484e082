package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/control"
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
		return kill(c, c.Args().First(), sig, c.Bool("all"))
	},
}

func kill(c *cli.Context, id string, sig unix.Signal, all bool) error {
	container, dir, err := find(c, id, state.Kill)
	if err == nil {
		defer dir.Close()
		err = sendSignal(c.Context, dir, container, sig, all)
	}
	if refused := new(state.Error); all && errors.As(err, &refused) && refused.Status == state.Stopped {
		// Engines send a last kill --all to what may have ended, also just now, and
		// expect success.
		return nil
	}
	if container == nil {
		return err
	}
	if sig != unix.SIGKILL {
		return err
	}
	if err != nil {
		return killSupervisor(c.Context, dir, container, err)
	}
	// With runc a delete right after works, as the process is gone at once. Here
	// its last output and files are still on their way: give them a moment. A
	// container that takes longer, for want of a reader, is not this verb's failure.
	ctx, cancel := context.WithTimeout(c.Context, killGrace)
	defer cancel()
	_ = container.Supervisor.Wait(ctx)
	return nil
}

const (
	// killTimeout is how long a supervisor may take to answer kill: it gives the guest
	// 10 seconds.
	killTimeout = 15 * time.Second
	// killGrace is how long kill waits for a container to be gone after SIGKILL.
	killGrace = 5 * time.Second
)

// sendSignal has the supervisor send a signal. It does not stay connected: a
// container that ends waits for whoever is.
func sendSignal(ctx context.Context, dir *state.Dir, container *state.Container, sig unix.Signal, all bool) error {
	if sig == unix.SIGKILL && container.Supervisor.Suspended() {
		return fmt.Errorf("%w: it is stopped", errNoAnswer)
	}
	supervisor, err := dial(ctx, dir, container, state.Kill)
	if err != nil {
		return err
	}
	defer supervisor.Close()
	_, err = supervisor.Kill(ctx, &control.KillRequest{Signal: uint32(sig), All: all})
	return control.Error(err)
}

// killSupervisor is for a SIGKILL that the supervisor did not carry out. One that does
// not answer is killed itself, and the virtual machine ends with it. One that answers
// has its reason, such as that the container has ended by now.
func killSupervisor(ctx context.Context, dir *state.Dir, container *state.Container, reason error) error {
	if !errors.Is(reason, errNoAnswer) && !errors.Is(reason, unix.ECONNREFUSED) && !errors.Is(reason, fs.ErrNotExist) {
		return reason
	}
	logrus.Debugf("kill the supervisor itself: %v", reason)
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	return endSupervisor(ctx, dir, container.Supervisor)
}

// maxSignal is the highest real-time signal, signal(7).
const maxSignal = 64

// parseSignal takes a number, or a name with or without SIG, in any case; 0
// only asks whether the container is there.
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

// realTime knows SIGRTMIN, SIGRTMIN+n, SIGRTMAX and SIGRTMAX-n; glibc keeps the
// first two for itself, so SIGRTMIN is 34.
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
