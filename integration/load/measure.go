package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// witness is a container that only lives, and is asked now and then.
type witness struct {
	l   *load
	id  string
	pid int
}

func (l *load) startWitness() (*witness, error) {
	w := &witness{l: l, id: l.id()}
	if err := l.call("create", "--bundle", l.bundle, "--pid-file", l.pidFile(w.id), w.id); err != nil {
		return nil, err
	}
	w.pid = l.pidOf(w.id)
	return w, l.call("start", w.id)
}

// ask uses what its supervisor offers.
func (w *witness) ask() error {
	for _, args := range [][]string{{"exec", w.id, "true"}, {"state", w.id}, {"events", "--stats", w.id}, {"ps", w.id}} {
		if err := w.l.call(args...); err != nil {
			return fmt.Errorf("witness: %w", err)
		}
	}
	return nil
}

func (w *witness) end() []error {
	if err := w.l.call("delete", "--force", w.id); err != nil {
		return []error{err}
	}
	return nil
}

// figure is one thing that is counted, and by how much it may grow.
type figure struct {
	name   string
	n      int64
	unit   string
	growth int64
}

// Growth that is no leak: Go keeps threads and memory that it has once needed.
const (
	threadGrowth = 8
	memoryGrowth = 8 << 10 // KiB
)

// measure counts what a leak would make more of. What is counted on the whole host is
// restricted to what has this call's name in it: others work beside it.
func (l *load) measure(w *witness, nets []*network) ([]figure, error) {
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", w.pid))
	if err != nil {
		return nil, fmt.Errorf("witness: %w", err)
	}
	threads, err := statusOf(w.pid, "Threads:")
	if err != nil {
		return nil, err
	}
	anon, err := statusOf(w.pid, "RssAnon:")
	if err != nil {
		return nil, err
	}
	vmm := vmmOf(w.pid)
	vmmFDs, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", vmm))
	if err != nil {
		return nil, fmt.Errorf("witness: %w", err)
	}
	vmmThreads, err := statusOf(vmm, "Threads:")
	if err != nil {
		return nil, err
	}
	taps, err := leftIn(nets)
	if err != nil {
		return nil, err
	}
	processes, namespaces := l.descendants()
	return []figure{
		{"supervisor: descriptors", int64(len(fds)), "", 0},
		{"supervisor: threads", threads, "", threadGrowth},
		{"supervisor: memory", anon, "KiB", memoryGrowth},
		{"vmm: descriptors", int64(len(vmmFDs)), "", 0},
		{"vmm: threads", vmmThreads, "", threadGrowth},
		{"processes", processes, "", 0},
		{"network namespaces", namespaces, "", 0},
		{"mounts", int64(len(mountsBelow(l.dir))), "", 0},
		{"cgroups", l.named("/sys/fs/cgroup"), "", 0},
		{"taps and tc rules", taps, "", 0},
		{"files of the state root", count(l.root), "", 0},
		{"half-made files of the cache", l.halfMade(), "", 0},
		{"files below /run", l.named("/run"), "", 0},
	}, nil
}

// settleIn is how long what is on its way out may take: the kernel destroys
// namespaces one by one.
const settleIn = 30 * time.Second

// settle measures until nothing has grown, or it is time.
func (l *load) settle(before []figure, w *witness, nets []*network) ([]figure, error) {
	end := time.Now().Add(settleIn)
	for {
		after, err := l.measure(w, nets)
		if err != nil || len(grown(before, after)) == 0 || time.Now().After(end) {
			return after, err
		}
		time.Sleep(time.Second) // nothing tells of it
	}
}

func grown(before, after []figure) (errs []error) {
	for i, b := range before {
		if a := after[i]; a.n > b.n+b.growth {
			errs = append(errs, fmt.Errorf("%s: %d became %d", b.name, b.n, a.n))
		}
	}
	return errs
}

// compare prints the table.
func compare(before, after []figure) []error {
	fmt.Printf("%-30s %10s %10s %8s\n", "", "start", "end", "allowed")
	for i, b := range before {
		fmt.Printf("%-30s %10d %10d %+8d %s\n", b.name, b.n, after[i].n, b.growth, b.unit)
	}
	return grown(before, after)
}

// statusOf reads a number of /proc/PID/status.
func statusOf(pid int, key string) (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 1 && fields[0] == key {
			return strconv.ParseInt(fields[1], 10, 64)
		}
	}
	return 0, errors.Join(lines.Err(), fmt.Errorf("no %s of process %d", key, pid))
}

func availableMiB() int64 {
	text, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "MemAvailable:" {
			n, _ := strconv.ParseInt(fields[1], 10, 64)
			return n >> 10
		}
	}
	return 0
}

func childrenOf(pid int) (children []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, _ := os.ReadFile(list) // or the thread has ended
		for field := range strings.FieldsSeq(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				children = append(children, child)
			}
		}
	}
	return children
}

// descendants counts the processes below this one, and their network namespaces.
func (l *load) descendants() (processes, namespaces int64) {
	seen := map[string]bool{}
	var walk func(pid int)
	walk = func(pid int) {
		for _, child := range childrenOf(pid) {
			processes++
			if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", child)); err == nil {
				seen[ns] = true
			}
			walk(child)
		}
	}
	walk(os.Getpid())
	return processes, int64(len(seen))
}

// named counts what is named after this call's containers below a directory.
func (l *load) named(place string) (n int64) {
	tag := filepath.Base(l.dir) + "-"
	_ = filepath.WalkDir(place, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == l.dir {
			return nil //nolint:nilerr // others' vanish meanwhile
		}
		if strings.Contains(d.Name(), tag) {
			n++
		}
		return nil
	})
	return n
}

func count(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(string, fs.DirEntry, error) error {
		n++
		return nil
	})
	return n
}

// halfMade counts what no call that has ended should have left in the cache.
func (l *load) halfMade() (n int64) {
	var settings struct {
		Cache string `toml:"cache"`
	}
	// Without one, husk's own is looked at.
	_, _ = toml.DecodeFile(l.config, &settings)
	if settings.Cache == "" {
		settings.Cache = "/var/cache/husk"
	}
	for _, pattern := range []string{"tmp-*", "templates/.making-*", "templates/.gone-*"} {
		found, _ := filepath.Glob(filepath.Join(settings.Cache, pattern))
		n += int64(len(found))
	}
	return n
}

// mountsBelow returns the mount points below dir, the deepest first.
func mountsBelow(dir string) (found []string) {
	text, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			found = append([]string{fields[4]}, found...)
		}
	}
	return found
}
