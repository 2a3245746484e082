package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/control"
)

var psCommand = &cli.Command{
	Name:         "ps",
	Usage:        "show the host's processes of a container: its supervisor and those of exec",
	ArgsUsage:    "<container-id> [ps options]",
	OnUsageError: usageError,
	Flags:        []cli.Flag{formatFlag()},
	Action: func(c *cli.Context) error {
		if err := minArgs(c, 1); err != nil {
			return err
		}
		pids, err := hostPIDs(c, c.Args().First())
		if err != nil {
			return err
		}
		switch c.String("format") {
		case "json":
			if err := json.NewEncoder(c.App.Writer).Encode(pids); err != nil {
				return fmt.Errorf("print processes: %w", err)
			}
			return nil
		case "table":
			return psTable(c.Context, c.App.Writer, c.Args().Tail(), pids)
		}
		return errFormat
	},
}

// hostPIDs asks the supervisor. It returns nil for a stopped container, for which runc prints
// `null`.
func hostPIDs(c *cli.Context, id string) ([]int32, error) {
	container, supervisor, err := control.Open(c.Context, c.String("root"), id, state.Ps)
	if refused := new(state.Error); errors.As(err, &refused) && refused.Status == state.Stopped {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer supervisor.Close()
	resp, err := supervisor.Ps(c.Context, &control.PsRequest{})
	switch {
	case err == nil:
		return resp.HostPids, nil
	case container.Status() == state.Stopped:
		return nil, nil // it has ended since
	}
	return nil, control.Error(err)
}

// psTable runs the host's ps with args and prints the header and the lines of pids.
func psTable(ctx context.Context, w io.Writer, args []string, pids []int32) error {
	if len(args) == 0 {
		args = []string{"-ef"}
	}
	cmd := exec.CommandContext(ctx, "ps", args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("run ps: %w: %s", err, bytes.TrimSpace(out))
	}
	lines, err := pickLines(string(out), pids)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(w, lines); err != nil {
		return fmt.Errorf("print processes: %w", err)
	}
	return nil
}

// pickLines returns the header of a listing and each line whose PID column has one of pids.
// Columns before PID must not contain spaces, as with runc.
func pickLines(listing string, pids []int32) (string, error) {
	header, rest, _ := strings.Cut(listing, "\n")
	column := slices.Index(strings.Fields(header), "PID")
	if column < 0 {
		return "", errors.New("couldn't find PID field in ps output")
	}
	picked := header + "\n"
	for line := range strings.Lines(rest) {
		fields := strings.Fields(line)
		if len(fields) <= column {
			continue
		}
		pid, err := strconv.ParseInt(fields[column], 10, 32)
		if err != nil {
			// When asked for threads or a tree, ps prints lines without a pid.
			continue
		}
		if slices.Contains(pids, int32(pid)) {
			picked += strings.TrimSuffix(line, "\n") + "\n"
		}
	}
	return picked, nil
}
