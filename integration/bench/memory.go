package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"time"
)

// parallel starts many containers at once and checks each one's result.
func (b *bench) parallel() error {
	const containers = 50
	rootfs := filepath.Join(b.dir, "rootfs")
	bundle := func(i int) string { return filepath.Join(b.dir, "parallel", strconv.Itoa(i)) }
	for i := range containers {
		if err := b.makeBundle(bundle(i), rootfs, []string{"echo", "container", strconv.Itoa(i)}); err != nil {
			return err
		}
	}
	for _, r := range b.runtimes {
		took, err := timed(func() error {
			return each(containers, func(i int) error {
				said, err := b.text(r, bundle(i))
				if want := fmt.Sprintf("container %d\n", i); err == nil && said != want {
					err = fmt.Errorf("%s: a container printed %q, want %q", r.name, said, want)
				}
				return err
			})
		})
		if err != nil {
			return err
		}
		b.results.durations(fmt.Sprintf("%d at once", containers), r.name, "", []time.Duration{took})
	}
	return nil
}

// each runs f for 0 to n-1 at the same time.
func each(n int, f func(i int) error) error {
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { errs[i] = f(i) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// memory measures what idle containers use on the host: the proportional set size of all their
// processes. At the end each container must still answer.
func (b *bench) memory() error {
	for _, r := range b.runtimes {
		var ids []string
		for _, n := range []int{1, 10, 50} {
			for len(ids) < n {
				id := b.id()
				if err := r.call("run", "--detach", "--bundle", b.bundle("sleep 1000"), id); err != nil {
					return err
				}
				ids = append(ids, id)
			}
			total, err := r.memory(ids)
			if err != nil {
				return err
			}
			b.results.values(fmt.Sprintf("memory of an idle container, %d of them", n), r.name, "MiB", "", []float64{total / float64(n)})
		}
		for _, id := range ids {
			if err := r.call("exec", id, "true"); err != nil {
				return err
			}
			if err := r.call("delete", "--force", id); err != nil {
				return err
			}
		}
	}
	return nil
}

// memory returns what all processes of the containers use, in MiB.
func (r *oci) memory(ids []string) (float64, error) {
	total := 0.0
	for _, id := range ids {
		pid, err := r.pid(id)
		if err != nil {
			return 0, err
		}
		for _, p := range descendants(pid) {
			kib, err := pss(p)
			if err != nil {
				return 0, err
			}
			total += kib / 1024
		}
	}
	return total, nil
}

// many starts more idle VMs than anybody would expect of the machine, and checks that each
// still answers.
func (b *bench) many() error {
	const (
		containers = 200
		atATime    = 4
		needMiB    = containers * 60
	)
	if free, err := availableMiB(); err != nil || free < needMiB {
		b.results.notes = append(b.results.notes, fmt.Sprintf("%d idle containers were left out: they want %d MiB, and %.0f are free", containers, needMiB, free))
		return err
	}
	r := b.runtimes[0]
	ids := make([]string, containers)
	slots := make(chan struct{}, atATime)
	took, err := timed(func() error {
		return each(containers, func(i int) error {
			slots <- struct{}{}
			defer func() { <-slots }()
			ids[i] = b.id()
			return r.call("run", "--detach", "--bundle", b.bundle("sleep 1000"), ids[i])
		})
	})
	if err != nil {
		return err
	}
	figure := func(text string) string { return fmt.Sprintf("%d idle: %s", containers, text) }
	b.results.durations(figure("start all, "+strconv.Itoa(atATime)+" at a time"), r.name, "", []time.Duration{took})
	total, err := r.memory(ids)
	if err != nil {
		return err
	}
	b.results.values(figure("memory of each"), r.name, "MiB", "", []float64{total / containers})
	var answers []time.Duration
	for _, id := range ids {
		took, err := timed(func() error { return r.call("exec", id, "true") })
		if err != nil {
			return err
		}
		answers = append(answers, took)
	}
	b.results.durations(figure("exec true in each"), r.name, "", answers)
	return each(containers, func(i int) error {
		slots <- struct{}{}
		defer func() { <-slots }()
		return r.call("delete", "--force", ids[i])
	})
}

var availableLine = regexp.MustCompile(`(?m)^MemAvailable:\s+(\d+) kB`)

// availableMiB returns the memory that the host could give to new processes.
func availableMiB() (float64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	m := availableLine.FindSubmatch(text)
	if m == nil {
		return 0, errors.New("no MemAvailable in /proc/meminfo")
	}
	kib, err := strconv.ParseFloat(string(m[1]), 64)
	return kib / 1024, err
}

var pssLine = regexp.MustCompile(`(?m)^Pss:\s+(\d+) kB`)

// pss returns the proportional set size of a process in KiB.
func pss(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	m := pssLine.FindSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("no Pss in smaps_rollup of %d", pid)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}
