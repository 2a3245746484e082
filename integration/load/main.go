// Load makes, starts, kills and deletes containers, many at a time, with its hand in
// the works: now and then it kills the cli, the supervisor or the vmm. Beside them a
// witness lives. At the end nothing that it counts may have grown.
//
//	load -husk ./husk -config husk.toml -cycles 2000 -parallel 8 -alive 200
//	load -husk ./husk -config husk.toml -for 30m
package main

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

type load struct {
	husk, config    string
	dir, root       string
	bundle          string
	cycles          int
	parallel, alive int
	duration        time.Duration
	seed            uint64

	reaper *reaper
	lastID atomic.Int64
	done   atomic.Int64 // cycles
	faults counters
}

func main() {
	l := &load{}
	flag.StringVar(&l.husk, "husk", "./husk", "the runtime")
	flag.StringVar(&l.config, "config", "", "its settings file")
	flag.IntVar(&l.cycles, "cycles", 2000, "containers to make and delete")
	flag.IntVar(&l.parallel, "parallel", 8, "how many at a time")
	flag.IntVar(&l.alive, "alive", 200, "containers that live at the same time after that; 0: none")
	flag.DurationVar(&l.duration, "for", 0, "go on for this long instead of -cycles")
	flag.Uint64Var(&l.seed, "seed", uint64(time.Now().UnixNano()), "of what is random")
	flag.Parse()
	if err := l.run(); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func (l *load) run() (err error) {
	if os.Geteuid() != 0 {
		return errors.New("this needs root")
	}
	if l.husk, err = filepath.Abs(l.husk); err != nil {
		return err
	}
	if l.reaper, err = startReaper(); err != nil {
		return err
	}
	if l.dir, err = os.MkdirTemp("", "husk-load-"); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, l.clean())
	}()
	l.root, l.bundle = filepath.Join(l.dir, "root"), filepath.Join(l.dir, "bundle")
	if err := makeBundle(l.bundle); err != nil {
		return err
	}
	fmt.Printf("seed %d\n", l.seed)
	witness, err := l.startWitness()
	if err != nil {
		return fmt.Errorf("witness: %w", err)
	}
	nets, err := l.makeNetworks()
	if err != nil {
		return err
	}
	// What is filled once, caches and pools, is filled before the first look.
	if err := l.cycle(rand.New(rand.NewPCG(l.seed, 0)), nets[0]); err != nil {
		return fmt.Errorf("first cycle: %w", err)
	}
	for range warmUp {
		if err := witness.ask(); err != nil {
			return err
		}
	}
	before, err := l.measure(witness, nets)
	if err != nil {
		return err
	}
	began := time.Now()
	failures := l.cycleAll(witness, nets)
	took := time.Since(began)
	if l.alive > 0 {
		failures = append(failures, l.manyAlive(witness)...)
	}
	after, err := l.settle(before, witness, nets)
	if err != nil {
		return err
	}
	fmt.Printf("%d cycles at %d in parallel in %v; %s\n\n", l.done.Load(), l.parallel, took.Round(time.Second), l.faults.String())
	failures = append(failures, compare(before, after)...)
	failures = append(failures, witness.end()...)
	return errors.Join(failures...)
}

// warmUp is how often the witness is asked before the first look.
const warmUp = 20

// cycleAll does all cycles, and asks the witness meanwhile.
func (l *load) cycleAll(witness *witness, nets []*network) (failures []error) {
	var mu sync.Mutex
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		failures = append(failures, err)
		fmt.Fprintln(os.Stderr, err)
	}
	stop, asked := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(asked)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Second):
				if err := witness.ask(); err != nil {
					fail(err)
				}
			}
		}
	}()
	end := time.Now().Add(l.duration)
	var workers sync.WaitGroup
	for w := range l.parallel {
		workers.Go(func() {
			r := rand.New(rand.NewPCG(l.seed, uint64(w)+1))
			for l.goesOn(end) {
				if err := l.cycle(r, nets[w]); err != nil {
					fail(err)
				}
				if n := l.done.Load(); n%100 == 0 {
					fmt.Printf("%d cycles\n", n)
				}
			}
		})
	}
	workers.Wait()
	close(stop)
	<-asked
	return failures
}

// goesOn takes one more cycle, if there is to be one.
func (l *load) goesOn(end time.Time) bool {
	n := l.done.Add(1)
	if l.duration > 0 && time.Now().Before(end) || l.duration == 0 && n <= int64(l.cycles) {
		return true
	}
	l.done.Add(-1)
	return false
}

// manyAlive has many containers live at the same time.
func (l *load) manyAlive(witness *witness) (failures []error) {
	began := time.Now()
	free := availableMiB()
	ids := make([]string, l.alive)
	errs := make([]error, l.alive)
	places := make(chan struct{}, l.parallel)
	each := func(f func(i int) error) {
		var all sync.WaitGroup
		for i := range ids {
			places <- struct{}{}
			all.Go(func() {
				defer func() { <-places }()
				errs[i] = errors.Join(errs[i], f(i))
			})
		}
		all.Wait()
	}
	each(func(i int) error {
		ids[i] = l.id()
		if err := l.call("create", "--bundle", l.bundle, "--pid-file", l.pidFile(ids[i]), ids[i]); err != nil {
			return err
		}
		return l.call("start", ids[i])
	})
	up := time.Since(began)
	used := free - availableMiB()
	began = time.Now()
	each(func(i int) error { return l.call("exec", ids[i], "true") })
	asked := time.Since(began)
	if err := witness.ask(); err != nil {
		failures = append(failures, err)
	}
	began = time.Now()
	each(func(i int) error { return l.call("delete", "--force", ids[i]) })
	fmt.Printf("%d alive: up in %v, %d MiB; an exec in each %v; deleted in %v\n", l.alive,
		up.Round(time.Second), used, asked.Round(time.Second), time.Since(began).Round(time.Second))
	for _, err := range errs {
		if err != nil {
			failures = append(failures, err)
		}
	}
	return failures
}

// clean removes the directory, but never through a mount.
func (l *load) clean() error {
	for _, m := range mountsBelow(l.dir) {
		if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	return os.RemoveAll(l.dir)
}
