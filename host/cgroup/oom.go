package cgroup

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/detached"
)

// OOM is the group's memory as it is needed to have the kernel tell that it ran
// out: engines hear of that from nobody else. It is held open, and works without any
// path.
type OOM struct {
	dir   *os.File
	files oomFiles
}

// oomFiles are the names of one version of cgroups.
type oomFiles struct {
	limit, usage, events string
	// drop has the kernel give up cache: what is written is an amount, or for v1 nothing.
	// v2 has it since Linux 5.19.
	drop string
	// off are set to 0 meanwhile: the first so that memory is not made by swapping
	// the machine out, the second so that it is not killed along with another.
	off []string
	// cache are the keys of memory.stat for what the kernel gives up before it kills.
	cache []string
}

var (
	oomV1 = oomFiles{"memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control", "memory.force_empty", []string{"memory.swappiness"}, []string{"total_active_file", "total_inactive_file"}}
	oomV2 = oomFiles{"memory.max", "memory.current", "memory.events", "memory.reclaim", []string{"memory.swap.max", "memory.oom.group"}, []string{"active_file", "inactive_file"}}
)

// OpenOOM opens the group's memory; nil where the machine has none to limit.
func (g *Group) OpenOOM() (*OOM, error) {
	o := &OOM{files: oomV1}
	dir, found := g.Paths["memory"]
	if g.IsV2() {
		o.files = oomV2
		dir, found = g.Paths[""]
	}
	if _, skipped := g.Skipped["memory"]; !found || skipped {
		return nil, nil
	}
	var err error
	// It stays open in a process that a guest talks to: nothing of other groups is to
	// be reached by it.
	if o.dir, err = detached.Open(dir); err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	if _, err := o.read(o.files.limit); err != nil {
		_ = o.dir.Close()
		return nil, nil //nolint:nilerr // no memory controller in this group
	}
	return o, nil
}

// Used is how much memory is counted in the group, and how much of that the kernel
// gives up when it is wanted; in bytes.
func (o *OOM) Used() (used, cache int64, err error) {
	text, err := o.read(o.files.usage)
	if err != nil {
		return 0, 0, err
	}
	if used, err = strconv.ParseInt(text, 10, 64); err != nil {
		return 0, 0, fmt.Errorf("read %s: %w", o.files.usage, err)
	}
	stat, err := o.read("memory.stat")
	if err != nil {
		return 0, 0, err
	}
	for _, key := range o.files.cache {
		n, _ := findKey(stat, key)
		cache += n
	}
	return used, cache, nil
}

// Kills counts the processes that the kernel has killed in the group.
func (o *OOM) Kills() (int64, error) {
	text, err := o.read(o.files.events)
	if err != nil {
		return 0, err
	}
	n, found := findKey(text, "oom_kill")
	if !found {
		return 0, fmt.Errorf("read %s: it counts no kills", o.files.events)
	}
	return n, nil
}

// DropCache has the kernel give up so many bytes of cache, or with v1 all that is
// counted in the group, as far as it can, and swap nothing. Used tells what it has
// done.
func (o *OOM) DropCache(bytes int64) error {
	was := make(map[string]string)
	err := o.replace(was, o.files.off, "0")
	if err == nil {
		// It fails where less is left to give up, and on a kernel that has no such file.
		_ = o.write(o.files.drop, strconv.FormatInt(bytes, 10))
	}
	return errors.Join(err, o.restore(was))
}

// Squeeze sets the limit to a number of bytes, and nothing is swapped, until it is
// let go, which puts back what was there.
func (o *OOM) Squeeze(limit int64) (letGo func() error, err error) {
	was := make(map[string]string)
	letGo = func() error { return o.restore(was) }
	if err = o.replace(was, o.files.off, "0"); err == nil {
		err = o.replace(was, []string{o.files.limit}, strconv.FormatInt(limit, 10))
	}
	if err != nil {
		return nil, errors.Join(err, letGo())
	}
	return letGo, nil
}

// replace writes to each file, having noted in was what stood there. The limit
// alone has to exist: a kernel may have no swap.
func (o *OOM) replace(was map[string]string, names []string, text string) error {
	for _, name := range names {
		old, err := o.read(name)
		if isGone(err) && name != o.files.limit {
			continue
		}
		if err != nil {
			return err
		}
		was[name] = old
		if err := o.write(name, text); err != nil {
			return err
		}
	}
	return nil
}

func (o *OOM) restore(was map[string]string) error {
	var errs []error
	for name, text := range was {
		errs = append(errs, o.write(name, text))
	}
	return errors.Join(errs...)
}

func (o *OOM) open(name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(o.dir.Fd()), name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// maxCgroupFile bounds what is read of one file, in bytes.
const maxCgroupFile = 64 << 10

func (o *OOM) read(name string) (string, error) {
	f, err := o.open(name, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxCgroupFile))
	return strings.TrimSpace(string(b)), err
}

func (o *OOM) write(name, text string) error {
	f, err := o.open(name, unix.O_WRONLY)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// findKey finds the number of a line "key number".
func findKey(text, key string) (int64, bool) {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), key+" "); ok {
			n, err := strconv.ParseInt(v, 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}
