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

// OOM is open files of the group's memory controller. By it the kernel can be made to report
// that memory ran out, which engines learn from nobody else. It needs no path after it was
// opened.
type OOM struct {
	dir   *os.File
	files oomFiles
}

// oomFiles are the names of the files in one version of cgroups.
type oomFiles struct {
	limit, usage, events string
	// drop makes the kernel give up page cache. The value written is an amount in bytes, and
	// with v1 "". v2 has the file since Linux 5.19.
	drop string
	// off are files set to 0 during the kill: the first so that the kernel does not swap the
	// machine out to get memory, the second so that it does not kill the machine together with
	// the chosen process.
	off []string
	// cache are the keys of memory.stat for memory that the kernel gives up before it kills.
	cache []string
}

var (
	oomV1 = oomFiles{"memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control", "memory.force_empty", []string{"memory.swappiness"}, []string{"total_active_file", "total_inactive_file"}}
	oomV2 = oomFiles{"memory.max", "memory.current", "memory.events", "memory.reclaim", []string{"memory.swap.max", "memory.oom.group"}, []string{"active_file", "inactive_file"}}
)

// OpenOOM opens the group's memory controller. It returns nil if there is none.
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
	// The directory stays open in a process that a guest talks to, so no other group may be
	// reached from it.
	if o.dir, err = detached.Open(dir); err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	if _, err := o.read(o.files.limit); err != nil {
		_ = o.dir.Close()
		return nil, nil //nolint:nilerr // the group has no memory controller
	}
	return o, nil
}

// Used returns the memory that is counted in the group, and how much of it is cache that the
// kernel can give up, in bytes.
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

// Kills returns how many processes the kernel has killed in the group.
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

// DropCache makes the kernel give up this many bytes of cache, with v1 all cache of the group,
// as far as it can and without swapping. Used returns the result.
func (o *OOM) DropCache(bytes int64) error {
	was := make(map[string]string)
	err := o.replace(was, o.files.off, "0")
	if err == nil {
		// The write fails if there is less cache, or if the kernel has no such file.
		_ = o.write(o.files.drop, strconv.FormatInt(bytes, 10))
	}
	return errors.Join(err, o.restore(was))
}

// LowerLimit sets the memory limit to this many bytes and disables swapping. restore restores what
// was set before.
func (o *OOM) LowerLimit(limit int64) (restore func() error, err error) {
	was := make(map[string]string)
	restore = func() error { return o.restore(was) }
	if err = o.replace(was, o.files.off, "0"); err == nil {
		err = o.replace(was, []string{o.files.limit}, strconv.FormatInt(limit, 10))
	}
	if err != nil {
		return nil, errors.Join(err, restore())
	}
	return restore, nil
}

// replace writes text to each file and notes its old content in was. Only the file of the limit
// has to exist, because a kernel may have no swap.
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

// findKey returns the number in a line "key number".
func findKey(text, key string) (int64, bool) {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), key+" "); ok {
			n, err := strconv.ParseInt(v, 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}
