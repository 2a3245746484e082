package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/detached"
	"github.com/huskvm/husk/flock"
)

// DefaultRoot holds one directory for each container when --root is not given.
const DefaultRoot = "/run/husk"

// Names in a container's directory. Everything husk ever puts there is listed
// in contents, which is what Remove removes.
const (
	// The file is not called state.json: engines give all their runtimes the
	// same --root, and runc's file of that name would be taken for ours.
	stateFile     = "husk.json"
	stateFileTemp = "husk.json.new"

	ControlSocket = "control.sock" // the supervisor's service
	StreamSocket  = "stream.sock"  // stdio of exec'd processes
	LogFile       = "supervisor.log"
	ShareDir      = "share"  // mount point of the tree exported to the guest
	ShadowDir     = "rootfs" // mount point of the supervisor's own root
)

var contents = []string{
	stateFile, stateFileTemp, ControlSocket, StreamSocket, LogFile, ShareDir, ShadowDir,
}

// maxStateFile bounds what is read back, in bytes.
const maxStateFile = 16 << 20

// Errors in the words engines and their tests look for.
var (
	ErrNotExist  = errors.New("container does not exist")
	ErrExist     = errors.New("container with given ID already exists")
	ErrInvalidID = errors.New("invalid container ID format")
)

// idFormat is runc's: what may be a file name, and a cgroup's.
var idFormat = regexp.MustCompile(`^[\w+.-]+$`)

// Dir is a container's directory, open and locked. While it is locked no other
// process creates or deletes the container.
type Dir struct {
	Path string
	root *os.Root
	lock *os.File
}

// ValidID returns ErrInvalidID for an id that is not one clean file name.
func ValidID(id string) error {
	if !idFormat.MatchString(id) || id == "." || id == ".." || len(id) > 1024 {
		return ErrInvalidID
	}
	return nil
}

// Create makes the directory of a new container with its first state in it,
// both at once by rename, so that nobody ever sees the one without the other.
// It returns ErrExist when the id is taken.
func Create(root string, c *Container) (*Dir, error) {
	if err := ValidID(c.ID); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(root, 0o711); err != nil {
		return nil, fmt.Errorf("create state root: %w", err)
	}
	path := filepath.Join(root, c.ID)
	if _, err := os.Lstat(path); err == nil {
		return nil, ErrExist
	}
	// The leading dot keeps it out of list; a leftover of a killed create is
	// found again by nobody and holds nothing but one small file.
	temp, err := os.MkdirTemp(root, ".creating-")
	if err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	d, err := open(temp)
	if err == nil {
		err = d.fill(c)
	}
	if err == nil {
		err = unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		if d != nil {
			d.Close()
		}
		for _, name := range contents {
			os.Remove(filepath.Join(temp, name))
		}
		os.Remove(temp)
		if errors.Is(err, fs.ErrExist) {
			return nil, ErrExist
		}
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	d.Path = path
	return d, nil
}

func (d *Dir) fill(c *Container) error {
	if err := d.tryLock(); err != nil {
		return err
	}
	for _, name := range []string{ShareDir, ShadowDir} {
		if err := d.root.Mkdir(name, 0o700); err != nil {
			return err
		}
	}
	return d.Save(c)
}

// Open opens the directory of an existing container without locking it.
func Open(root, id string) (*Dir, error) {
	if err := ValidID(id); err != nil {
		return nil, err
	}
	d, err := open(filepath.Join(root, id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotExist
	}
	return d, err
}

// OpenDir opens a container's directory by its path.
func OpenDir(path string) (*Dir, error) { return open(path) }

// OpenDetached opens it for a process that keeps it for long, the supervisor: other
// directories of the host are not to be reached by it.
func OpenDetached(path string) (*Dir, error) {
	f, err := detached.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open state directory: %w", err)
	}
	defer f.Close()
	d, err := open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return nil, err
	}
	d.Path = path
	return d, nil
}

func open(path string) (*Dir, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open state directory: %w", err)
	}
	lock, err := root.OpenFile(".", unix.O_DIRECTORY, 0)
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("open state directory: %w", err)
	}
	return &Dir{Path: path, root: root, lock: lock}, nil
}

// Close closes the directory and gives up its lock.
func (d *Dir) Close() {
	d.root.Close()
	d.lock.Close()
}

func (d *Dir) tryLock() error {
	if err := unix.Flock(int(d.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock state directory: %w", err)
	}
	return nil
}

// Lock waits for the lock until ctx ends.
func (d *Dir) Lock(ctx context.Context) error {
	if err := flock.Wait(ctx, d.lock); err != nil {
		return fmt.Errorf("lock state directory %s: another husk call holds it: %w", d.Path, err)
	}
	return nil
}

// Unlock gives the lock up.
func (d *Dir) Unlock() {
	// It cannot fail of a descriptor that is open, and closing it does the same.
	_ = unix.Flock(int(d.lock.Fd()), unix.LOCK_UN)
}

// Load reads the saved state.
func (d *Dir) Load() (*Container, error) {
	f, err := d.root.Open(stateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("load state: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxStateFile+1))
	if err != nil {
		return nil, fmt.Errorf("load state: %w", err)
	}
	return decode(b)
}

func decode(b []byte) (*Container, error) {
	if len(b) > maxStateFile {
		return nil, fmt.Errorf("load state: more than %d bytes", maxStateFile)
	}
	c := &Container{}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("load state: %w", err)
	}
	if err := ValidID(c.ID); err != nil {
		return nil, fmt.Errorf("load state: %w", err)
	}
	return c, nil
}

// Save writes the state by rename: a reader sees the old one or the new one.
// It works without any path, so also after the supervisor has left the host's
// mount namespace.
func (d *Dir) Save(c *Container) error {
	b, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	f, err := d.root.OpenFile(stateFileTemp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = d.root.Rename(stateFileTemp, stateFile)
	}
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	return nil
}

// OpenLog opens the supervisor's log for appending.
func (d *Dir) OpenLog() (*os.File, error) {
	return d.root.OpenFile(LogFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
}

// FDPath is a path to name in the directory that is short whatever the
// directory's is: a unix socket's address holds only 107 bytes.
func (d *Dir) FDPath(name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.lock.Fd(), name)
}

// Remove removes what husk put into the directory, name by name and never
// recursively: a mount that should not be there makes it fail instead of
// reaching through. Removing what is gone already is fine.
func (d *Dir) Remove() error {
	for _, name := range contents {
		if err := d.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove state directory %s: %w", d.Path, err)
		}
	}
	if err := os.Remove(d.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove state directory: %w", err)
	}
	return nil
}

// Find opens, reads and closes: what most verbs need.
func Find(root, id string) (*Container, error) {
	d, err := Open(root, id)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Load()
}

// List returns the containers below root, by id. Directories of other runtimes
// and containers that vanish meanwhile are passed over; of those that cannot be
// read, broken has the reasons, and the others are returned all the same.
func List(root string) (all []*Container, broken []error, err error) {
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list containers: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() || ValidID(e.Name()) != nil || e.Name()[0] == '.' {
			continue
		}
		c, err := Find(root, e.Name())
		if errors.Is(err, ErrNotExist) {
			continue
		}
		if err != nil {
			broken = append(broken, fmt.Errorf("list containers: %s: %w", e.Name(), err))
			continue
		}
		all = append(all, c)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].ID < all[j].ID })
	return all, broken, nil
}
