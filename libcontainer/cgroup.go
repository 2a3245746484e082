package libcontainer

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultCgroupRoot is where the cgroup2 filesystem is mounted, unless Config
// says otherwise.
const DefaultCgroupRoot = "/sys/fs/cgroup"

// eventTimeout is how long the kernel may take to freeze a cgroup or to empty it.
const eventTimeout = 10 * time.Second

// cgroup is one cgroup of version 2. A nil *cgroup stands for "no cgroup".
type cgroup struct {
	dir  string // absolute
	root string // the mount point of cgroup2
	file *os.File
}

// createCgroup makes the cgroup name below root, enables in it the controllers that the kernel
// has, and opens it. It fails if the cgroup exists and holds processes.
func createCgroup(root, name string) (*cgroup, error) {
	name = filepath.Clean("/" + name)
	if name == "/" {
		return nil, errors.New("create cgroup: the path must not be the root")
	}
	dir := root
	for part := range strings.SplitSeq(name[1:], "/") {
		if err := enableControllers(dir); err != nil {
			return nil, fmt.Errorf("create cgroup %s: %w", name, err)
		}
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("create cgroup: %w", err)
		}
	}
	c := &cgroup{dir: dir, root: root}
	pids, err := c.pids()
	if err != nil {
		return nil, fmt.Errorf("create cgroup: %w", err)
	}
	if len(pids) > 0 {
		return nil, fmt.Errorf("container's cgroup is not empty: %d process(es) found", len(pids))
	}
	if c.file, err = os.Open(dir); err != nil {
		return nil, fmt.Errorf("create cgroup: %w", err)
	}
	return c, nil
}

// enableControllers enables for the children of dir the controllers that dir has. A controller
// that cannot be enabled is no error here: writing a limit that needs it will fail.
func enableControllers(dir string) error {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	control := filepath.Join(dir, "cgroup.subtree_control")
	on, err := os.ReadFile(control)
	if err != nil {
		return err
	}
	enabled := strings.Fields(string(on))
	var missing []string
	for _, name := range strings.Fields(string(have)) {
		if !slices.Contains(enabled, name) {
			missing = append(missing, "+"+name)
		}
	}
	if len(missing) == 0 || os.WriteFile(control, []byte(strings.Join(missing, " ")), 0) == nil {
		return nil
	}
	// One write enables all controllers in it or none, so each gets a write of its own.
	for _, name := range missing {
		_ = os.WriteFile(control, []byte(name), 0)
	}
	return nil
}

// write sets one of the cgroup's files.
func (c *cgroup) write(file, value string) error {
	f, err := os.OpenFile(filepath.Join(c.dir, file), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		controller, _, _ := strings.Cut(file, ".")
		return fmt.Errorf("set %s: the %s controller is not available in cgroup %s", file, controller, c.dir)
	}
	if err == nil {
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("set %s to %q: %w", file, value, err)
	}
	return nil
}

func (c *cgroup) read(file string) (string, error) {
	b, err := os.ReadFile(filepath.Join(c.dir, file))
	return strings.TrimSpace(string(b)), err
}

// readUint reads a file that holds one number. It returns def for "max" and for a missing file.
func (c *cgroup) readUint(file string, def uint64) (uint64, error) {
	s, err := c.read(file)
	if errors.Is(err, fs.ErrNotExist) || err == nil && s == "max" {
		return def, nil
	}
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", file, err)
	}
	return v, nil
}

// readKeys reads a file of "key number" lines. A missing file gives an empty map.
func (c *cgroup) readKeys(file string) (map[string]uint64, error) {
	b, err := readSmall(filepath.Join(c.dir, file))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return parseKeys(string(b))
}

// readSmall reads a file as os.ReadFile does, but without registering it with the poller first.
// It is called at the exit of each container, which waits for it.
func readSmall(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	var b []byte
	chunk := make([]byte, 4096)
	for {
		n, err := unix.Read(fd, chunk)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		case n == 0:
			return b, nil
		default:
			b = append(b, chunk[:n]...)
		}
	}
}

func parseKeys(text string) (map[string]uint64, error) {
	keys := make(map[string]uint64)
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), " ")
		v, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", key, err)
		}
		keys[key] = v
	}
	return keys, lines.Err()
}

// walk calls f for the cgroup and all cgroups below it, children before parents. A cgroup that
// disappears during the walk is skipped.
func (c *cgroup) walk(f func(dir string) error) error { return walkCgroup(c.dir, f) }

func walkCgroup(dir string, f func(dir string) error) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := walkCgroup(filepath.Join(dir, e.Name()), f); err != nil {
				return err
			}
		}
	}
	err = f(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// pids lists the processes in the cgroup and those below it.
func (c *cgroup) pids() ([]int, error) {
	var pids []int
	err := c.walk(func(dir string) error {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil // a threaded cgroup: its processes are listed in its parent
		}
		if err != nil {
			return err
		}
		for field := range strings.FieldsSeq(string(b)) {
			// The kernel shows 0 for a process of a pid namespace that the caller cannot see.
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	slices.Sort(pids)
	return slices.Compact(pids), err
}

// freeze freezes or thaws every process and returns when the kernel has done it.
func (c *cgroup) freeze(on bool) error {
	value := "0"
	if on {
		value = "1"
	}
	if err := c.write("cgroup.freeze", value); err != nil {
		return err
	}
	err := c.waitEvent("frozen", value)
	if err != nil && on {
		// A cgroup must not stay half frozen.
		err = errors.Join(err, c.write("cgroup.freeze", "0"))
	}
	return err
}

// frozen says whether freezing was requested for the cgroup.
func (c *cgroup) frozen() (bool, error) {
	s, err := c.read("cgroup.freeze")
	return s == "1", err
}

// kill ends every process in the cgroup and below it.
func (c *cgroup) kill() error { return c.write("cgroup.kill", "1") }

// waitEvent waits until key has this value in cgroup.events. The kernel wakes a poll for
// POLLPRI on each change of that file.
func (c *cgroup) waitEvent(key, value string) error {
	f, err := os.Open(filepath.Join(c.dir, "cgroup.events"))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	deadline := time.Now().Add(eventTimeout)
	fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
	buf := make([]byte, 256)
	for {
		// Reading the file also arms the next poll.
		n, err := f.ReadAt(buf, 0)
		if n == 0 && err != nil {
			return fmt.Errorf("read cgroup.events: %w", err)
		}
		for line := range strings.Lines(string(buf[:n])) {
			if strings.TrimSpace(line) == key+" "+value {
				return nil
			}
		}
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("cgroup %s: no %q %s after %v", c.dir, key, value, eventTimeout)
		}
		if _, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("poll", err)
		}
	}
}

// destroy kills all processes left and removes the cgroup and the cgroups below it.
func (c *cgroup) destroy() error {
	if c == nil {
		return nil
	}
	_ = c.file.Close()
	if _, err := os.Stat(c.dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := c.kill(); err != nil {
		return fmt.Errorf("destroy cgroup: %w", err)
	}
	if err := c.waitEvent("populated", "0"); err != nil {
		return fmt.Errorf("destroy cgroup: %w", err)
	}
	// Only directories need to be removed: rmdir of a cgroup removes its files.
	if err := c.walk(func(dir string) error { return unix.Rmdir(dir) }); err != nil {
		return fmt.Errorf("remove cgroup %s: %w", c.dir, err)
	}
	return nil
}
