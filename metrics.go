package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/control"
)

// metricsAtOnce bounds how many supervisors are asked at the same time.
const metricsAtOnce = 16

var metricsCommand = &cli.Command{
	Name:  "metrics",
	Usage: "print what the containers below --root use, in the text format of Prometheus",
	Description: "For node_exporter's textfile collector: --output replaces a file that is read at any moment.\n" +
		"A container that does not answer in time has husk_container_up 0 and no other values.",
	OnUsageError: usageError,
	Flags: []cli.Flag{
		&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FILE` to write at once, by rename, in place of stdout"},
		&cli.DurationFlag{Name: "timeout", Value: defaultInterval, Usage: "`TIME` that each container has to answer"},
	},
	Action: func(c *cli.Context) error {
		if err := exactArgs(c, 0); err != nil {
			return err
		}
		root, timeout := c.String("root"), c.Duration("timeout")
		if timeout <= 0 {
			return fmt.Errorf("invalid timeout %s: it must be greater than 0", timeout)
		}
		containers, broken, err := state.List(root)
		if err != nil {
			return err
		}
		for _, err := range broken {
			logrus.Warn(err)
		}
		var text bytes.Buffer
		writeMetrics(&text, root, sampleAll(c.Context, root, containers, timeout))
		if path := c.String("output"); path != "" {
			return replaceFile(path, text.Bytes())
		}
		if _, err := c.App.Writer.Write(text.Bytes()); err != nil {
			return fmt.Errorf("print metrics: %w", err)
		}
		return nil
	},
}

// usage is what metrics reads of a stats event (supervisor/stats.go).
type usage struct {
	CPU struct {
		Usage struct {
			Total  uint64 `json:"total"` // nanoseconds
			Kernel uint64 `json:"kernel"`
			User   uint64 `json:"user"`
		} `json:"usage"`
		Throttling struct {
			ThrottledTime uint64 `json:"throttledTime"` // nanoseconds
		} `json:"throttling"`
	} `json:"cpu"`
	Memory struct {
		Usage struct {
			Limit   uint64 `json:"limit"` // bytes; math.MaxUint64: no limit
			Usage   uint64 `json:"usage"`
			Failcnt uint64 `json:"failcnt"`
		} `json:"usage"`
	} `json:"memory"`
	Pids struct {
		Current uint64 `json:"current"`
		Limit   uint64 `json:"limit"` // 0: no limit
	} `json:"pids"`
}

// sample is what was found out about one container.
type sample struct {
	id     string
	status state.Status
	usage  *usage // nil: the supervisor has not answered
}

// sampleAll asks each supervisor once. One that is stopped or hangs costs timeout, and only its
// own values are missing.
func sampleAll(ctx context.Context, root string, containers []*state.Container, timeout time.Duration) []sample {
	samples := make([]sample, len(containers))
	var asking errgroup.Group
	asking.SetLimit(metricsAtOnce)
	for i, container := range containers {
		samples[i] = sample{id: container.ID, status: container.Status()}
		if container.HandedTo != nil {
			continue // another runtime has its figures
		}
		if state.Allowed(state.Events, container.ID, samples[i].status) != nil {
			continue
		}
		asking.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			var err error
			if samples[i].usage, err = askUsage(ctx, root, container); err != nil {
				logrus.Warnf("metrics of container %s: %v", container.ID, err)
			}
			return nil // the others have values all the same
		})
	}
	_ = asking.Wait()
	return samples
}

func askUsage(ctx context.Context, root string, container *state.Container) (*usage, error) {
	dir, err := state.Open(root, container.ID)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	supervisor, err := control.ConnectFor(ctx, dir, container, state.Events)
	if err != nil {
		return nil, err
	}
	defer supervisor.Close()
	resp, err := supervisor.Stats(ctx, &control.StatsRequest{})
	if err != nil {
		return nil, control.Error(err)
	}
	u := &usage{}
	if err := json.Unmarshal(resp.Stats, u); err != nil {
		return nil, fmt.Errorf("read stats: %w", err)
	}
	return u, nil
}

// family is one metric of all containers. value returns false if a container has none.
type family struct {
	name, kind, help string
	value            func(*usage) (float64, bool)
}

func seconds(nanos uint64) (float64, bool) { return float64(nanos) / float64(time.Second), true }

var families = []family{
	{"husk_container_cpu_usage_seconds_total", "counter", "CPU time of the container's processes.", func(u *usage) (float64, bool) { return seconds(u.CPU.Usage.Total) }},
	{"husk_container_cpu_user_seconds_total", "counter", "The part of it in programs.", func(u *usage) (float64, bool) { return seconds(u.CPU.Usage.User) }},
	{"husk_container_cpu_system_seconds_total", "counter", "The part of it in the guest's kernel.", func(u *usage) (float64, bool) { return seconds(u.CPU.Usage.Kernel) }},
	{"husk_container_cpu_throttled_seconds_total", "counter", "Time for which the CPU limit held the container back.", func(u *usage) (float64, bool) { return seconds(u.CPU.Throttling.ThrottledTime) }},
	{"husk_container_memory_usage_bytes", "gauge", "Memory the container takes of its limit.", func(u *usage) (float64, bool) { return float64(u.Memory.Usage.Usage), true }},
	{"husk_container_memory_limit_bytes", "gauge", "The memory limit, where there is one.", func(u *usage) (float64, bool) {
		return float64(u.Memory.Usage.Limit), u.Memory.Usage.Limit != math.MaxUint64
	}},
	{"husk_container_memory_failures_total", "counter", "How often the memory limit was hit.", func(u *usage) (float64, bool) { return float64(u.Memory.Usage.Failcnt), true }},
	{"husk_container_pids", "gauge", "Processes and threads of the container.", func(u *usage) (float64, bool) { return float64(u.Pids.Current), true }},
	{"husk_container_pids_limit", "gauge", "The limit of them, where there is one.", func(u *usage) (float64, bool) { return float64(u.Pids.Limit), u.Pids.Limit != 0 }},
}

// label escapes a value for the text format.
var label = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

// writeMetrics writes the text format. All values have the label root, because node_exporter
// merges the files of several roots, in which the same id may occur.
func writeMetrics(w *bytes.Buffer, root string, samples []sample) {
	root = label.Replace(strings.ToValidUTF8(root, "\uFFFD"))
	head := func(name, kind, help string) { fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	line := func(name, key, value string, v float64) {
		fmt.Fprintf(w, "%s{root=\"%s\",%s=\"%s\"} %s\n", name, root, key, label.Replace(value), strconv.FormatFloat(v, 'g', -1, 64))
	}
	count := map[state.Status]int{}
	for _, s := range samples {
		count[s.status]++
	}
	head("husk_containers", "gauge", "Containers below the root, by status.")
	for _, status := range []state.Status{state.Creating, state.Created, state.Running, state.Paused, state.Stopped} {
		line("husk_containers", "status", string(status), float64(count[status]))
	}
	head("husk_container_up", "gauge", "1 for a container that answers, 0 for one that lives and does not.")
	for _, s := range samples {
		switch {
		case s.usage != nil:
			line("husk_container_up", "id", s.id, 1)
		case state.Allowed(state.Events, s.id, s.status) == nil:
			line("husk_container_up", "id", s.id, 0)
		}
	}
	for _, f := range families {
		head(f.name, f.kind, f.help)
		for _, s := range samples {
			if s.usage == nil {
				continue
			}
			if v, has := f.value(s.usage); has {
				line(f.name, "id", s.id, v)
			}
		}
	}
}

// replaceFile atomically replaces a file that everyone may read. node_exporter ignores the
// temporary file, whose name has another suffix.
func replaceFile(path string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write metrics: %w", err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("write metrics: %w", err)
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
