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

// parallel starts many containers at the same moment and checks that each did
// its own work.
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

// memory measures what idle containers add to the host: the proportional set
// size of every process of theirs. At the end each of them must still answer.
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
			total := 0.0
			for _, id := range ids {
				pid, err := r.pid(id)
				if err != nil {
					return err
				}
				for _, p := range descendants(pid) {
					kib, err := pss(p)
					if err != nil {
						return err
					}
					total += kib / 1024
				}
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

var pssLine = regexp.MustCompile(`(?m)^Pss:\s+(\d+) kB`)

// pss is a process's proportional set size in KiB.
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
