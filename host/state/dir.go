package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"sort"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/detached"
	"github.com/huskvm/husk/host/flock"
)

// DefaultRoot holds one directory for each container. --root replaces it.
const DefaultRoot = "/run/husk"

// Names in a container's directory. Remove removes exactly the names in contents, so every file
// that husk makes there must be listed.
const (
	// The file is not named state.json, because engines give all runtimes the same --root, and
	// runc's state.json would be taken for husk's.
	stateFile     = "husk.json"
	stateFileTemp = "husk.json.new"

	ControlSocket = "control.sock" // the supervisor's service
	StreamSocket  = "stream.sock"  // stdio of exec'd processes
	LogFile       = "supervisor.log"
	ShareDir      = "share"   // mount point of the directory tree that the guest gets
	ShadowDir     = "rootfs"  // mount point of the supervisor's root directory
	HandedDir     = "runtime" // --root of the runtime to which the container was handed over
)

// contents is in the order of removal. The state comes last, so that a container that is partly
// removed can be found and removed again.
var contents = []string{
	ControlSocket, StreamSocket, LogFile, ShareDir, ShadowDir, HandedDir, stateFileTemp, stateFile,
}

// maxStateFile bounds what is read of a state file, in bytes.
const maxStateFile = 16 << 20

// Errors with the words that engines and their tests match.
var (
	ErrNotExist  = errors.New("container does not exist")
	ErrExist     = errors.New("container with given ID already exists")
	ErrInvalidID = errors.New("invalid container ID format")
)

// ErrDamaged is returned for a container whose state cannot be read.
var ErrDamaged = errors.New("the container's state is damaged: all that can be done is to delete it, with --force")

// idFormat is the format of runc's ids. Such an id can be the name of a file and of a cgroup.
var idFormat = regexp.MustCompile(`^[\w+.-]+$`)

// Dir is a container's open directory. While it is locked no other process creates or deletes
// the container.
type Dir struct {
	Path string
	root *os.Root
	dir  *os.File // FDPath uses it
	lock *os.File // nil: this Dir does not hold the lock
}

// ValidID returns ErrInvalidID for an id that is not a single, clean file name.
func ValidID(id string) error {
	if !idFormat.MatchString(id) || id == "." || id == ".." || len(id) > 1024 {
		return ErrInvalidID
	}
	return nil
}

// Create makes the directory of a new container with its first state. Both appear together, by
// rename, so nobody sees a directory without a state. It returns ErrExist if the id is in use.
// The Dir is locked.
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
	Sweep(root)
	for {
		d, err := createAt(root, path, c)
		if errors.Is(err, errSwept) {
			continue
		}
		if errors.Is(err, fs.ErrExist) {
			return nil, ErrExist
		}
		if err != nil {
			return nil, fmt.Errorf("create state directory: %w", err)
		}
		return d, nil
	}
}

// Prefixes of directories that are being filled or removed. list ignores names that begin with
// a dot.
const (
	creatingPrefix = ".creating-"
	deletingPrefix = ".deleting-"
)

// errSwept means that another call has taken a new directory for a leftover, because it was not
// locked yet.
var errSwept = errors.New("the directory was taken for a leftover")

func createAt(root, path string, c *Container) (*Dir, error) {
	temp, err := os.MkdirTemp(root, creatingPrefix)
	if err != nil {
		return nil, err
	}
	d, err := open(temp)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errSwept
	}
	if err == nil {
		err = d.tryLock()
	}
	if errors.Is(err, unix.EWOULDBLOCK) || err == nil && !d.isAt(temp) {
		d.Close()
		return nil, errSwept
	}
	if err == nil {
		err = d.fill(c)
	}
	if err == nil {
		err = unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		for _, name := range contents {
			os.Remove(filepath.Join(temp, name))
		}
		os.Remove(temp)
		if d != nil {
			d.Close()
		}
		return nil, err
	}
	d.Path = path
	return d, nil
}

// isAt says whether path names this directory.
func (d *Dir) isAt(path string) bool {
	own, err := d.dir.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(own, there)
}

func (d *Dir) fill(c *Container) error {
	for _, name := range []string{ShareDir, ShadowDir} {
		if err := d.root.Mkdir(name, 0o700); err != nil {
			return err
		}
	}
	return d.Save(c)
}

// Open opens the directory of an existing container without locking it. It returns ErrNotExist
// if there is none.
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

// OpenFor opens the directory of a container and loads its state. It returns an *Error if the
// container's status does not allow the verb.
func OpenFor(verb Verb, root, id string) (*Container, *Dir, error) {
	dir, err := Open(root, id)
	if err != nil {
		return nil, nil, err
	}
	container, err := dir.Load()
	if err == nil {
		err = Allowed(verb, id, container.Status())
	}
	if err != nil {
		dir.Close()
		return nil, nil, err
	}
	return container, dir, nil
}

// OpenDetached opens a container's directory by its path for the supervisor, which keeps it
// open for long: no other directory of the host can be reached from it.
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
	dir, err := root.OpenFile(".", unix.O_DIRECTORY, 0)
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("open state directory: %w", err)
	}
	return &Dir{Path: path, root: root, dir: dir}, nil
}

// Close closes the directory and releases its lock.
func (d *Dir) Close() {
	d.Unlock()
	d.root.Close()
	d.dir.Close()
}

// openLock opens the directory again. A wait for the lock that was given up is still pending on
// its descriptor, so each wait uses a descriptor of its own.
func (d *Dir) openLock() (*os.File, error) {
	f, err := d.root.OpenFile(".", unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("lock state directory %s: %w", d.Path, err)
	}
	return f, nil
}

func (d *Dir) tryLock() error {
	f, err := d.openLock()
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return fmt.Errorf("lock state directory: %w", err)
	}
	d.lock = f
	return nil
}

// Lock waits for the lock until ctx ends. Only one goroutine may lock a Dir at a time.
func (d *Dir) Lock(ctx context.Context) error {
	f, err := d.openLock()
	if err != nil {
		return err
	}
	if err := flock.Wait(ctx, f); err != nil {
		return fmt.Errorf("lock state directory %s: another husk call holds it: %w", d.Path, err)
	}
	d.lock = f
	return nil
}

// Unlock releases the lock if it is held.
func (d *Dir) Unlock() {
	if d.lock == nil {
		return
	}
	// Closing the descriptor does not suffice: a process that is just being started may have a
	// duplicate.
	_ = unix.Flock(int(d.lock.Fd()), unix.LOCK_UN)
	d.lock.Close()
	d.lock = nil
}

// Load reads the saved state. It returns ErrNotExist if there is no container, and an error
// that wraps ErrDamaged if there is one that cannot be read.
func (d *Dir) Load() (*Container, error) {
	f, err := d.root.Open(stateFile)
	if errors.Is(err, fs.ErrNotExist) && !d.hasOthers() {
		return nil, ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("load state: %w: %w", ErrDamaged, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxStateFile+1))
	if err != nil {
		return nil, fmt.Errorf("load state: %w: %w", ErrDamaged, err)
	}
	c, err := decode(b)
	if err != nil {
		return nil, fmt.Errorf("load state: %w: %w", ErrDamaged, err)
	}
	return c, nil
}

// hasOthers says whether a directory without a state belongs to a container of husk's. Other
// runtimes may have directories below the same root.
func (d *Dir) hasOthers() bool {
	for _, name := range []string{ControlSocket, StreamSocket, LogFile} {
		if _, err := d.root.Lstat(name); err == nil {
			return true
		}
	}
	return false
}

func decode(b []byte) (*Container, error) {
	if len(b) > maxStateFile {
		return nil, fmt.Errorf("more than %d bytes", maxStateFile)
	}
	c := &Container{}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, err
	}
	return c, ValidID(c.ID)
}

// Save writes the state by rename: readers see the old state or the new one. It works without a
// path, so also after the supervisor has left the host's mount namespace.
func (d *Dir) Save(c *Container) error {
	staged, err := d.Stage(c)
	if err != nil {
		return err
	}
	defer staged.Cancel()
	return staged.Commit()
}

// Staged is a state that is written to disk beside the saved one and needs no more space.
type Staged struct{ dir *Dir } // nil after Commit or Cancel

// Stage writes a state beside the saved one. Only one may be staged at a time.
func (d *Dir) Stage(c *Container) (*Staged, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("save state: %w", err)
	}
	f, err := d.root.OpenFile(stateFileTemp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("save state: %w", err)
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = d.root.Remove(stateFileTemp) // the disk may be full
		return nil, fmt.Errorf("save state: %w", err)
	}
	return &Staged{d}, nil
}

// Commit makes the staged state the saved one.
func (s *Staged) Commit() error {
	d := s.dir
	s.dir = nil
	if err := d.root.Rename(stateFileTemp, stateFile); err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	return nil
}

// Cancel removes the staged state if it was not committed.
func (s *Staged) Cancel() {
	if s.dir != nil {
		_ = s.dir.root.Remove(stateFileTemp) // the next one overwrites it
		s.dir = nil
	}
}

// OpenLog opens the supervisor's log for appending.
func (d *Dir) OpenLog() (*os.File, error) {
	return d.root.OpenFile(LogFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
}

// ReadLog opens the supervisor's log for reading.
func (d *Dir) ReadLog() (*os.File, error) { return d.root.Open(LogFile) }

// FDPath returns a path for name in the directory that is short, however long the directory's
// path is: the address of a unix socket holds only 107 bytes.
func (d *Dir) FDPath(name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.dir.Fd(), name)
}

// SocketError returns the cause of an error of a socket with a path from FDPath. That path says
// nothing to a user, so it is left out.
func SocketError(err error) error {
	if op := new(net.OpError); errors.As(err, &op) {
		return op.Err
	}
	return err
}

// Find opens a container's directory, loads the state and closes the directory.
func Find(root, id string) (*Container, error) {
	d, err := Open(root, id)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Load()
}

// List returns the containers below root, ordered by id. Directories of other runtimes, and
// containers that are deleted meanwhile, are left out. broken has an error for each container
// that cannot be read; the others are still returned.
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
