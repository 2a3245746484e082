// Package template keeps memory templates: a guest that has booted once, up to
// where its agent waits for a host to speak, saved so that later VMs of the same
// kind wake up there instead of booting. No container has ever been in it.
//
// A template is a directory: the guest's RAM as a sparse file, the state of its
// devices, and a description that both are checked against before use. It is made
// under a lock by whoever needs it first, and appears by rename.
package template

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/config"
	"github.com/huskvm/husk/host/flock"
)

// Store is the directory templates are kept in, root only, and its limits; zero
// is no limit. They are looked at when a template is made.
type Store struct {
	Dir      string
	MaxAge   time.Duration // since the last start from it
	MaxBytes int64         // on disk, of all together
}

// StoreOf is where the settings say that templates are kept.
func StoreOf(settings *config.Config) Store {
	return Store{
		Dir:    filepath.Join(settings.Cache, "templates"),
		MaxAge: time.Duration(settings.TemplatesMaxAge), MaxBytes: int64(settings.TemplatesMaxMiB) << 20,
	}
}

// Template is one that was checked and may be used.
type Template struct {
	Key     string
	RAM     string // path of the file with the guest's RAM
	Devices string // path of the device state
}

// description is what a template says of itself.
type description struct {
	Format      int       `json:"format"`
	Key         string    `json:"key"`
	Kind        Kind      `json:"kind"` // for people: the key is made of it
	Created     time.Time `json:"created"`
	RAM         ramState  `json:"ram"`
	DevicesHash string    `json:"devicesHash"`
}

// ramState tells whether the RAM file is the one that was saved, untouched. Its
// content is not read: that would take longer than to boot. The time of change
// cannot be set back by who rewrites the file in place; only damage below the
// file system goes unseen, and then the guest does not answer. The number of
// blocks is no part of it: it settles only when the file has reached the disk.
type ramState struct {
	Inode   uint64 `json:"inode"`
	Bytes   int64  `json:"bytes"`
	Mtime   int64  `json:"mtime"` // ns after the epoch
	Ctime   int64  `json:"ctime"`
	Regular bool   `json:"regular"`
}

// stateOf does not follow a link.
func stateOf(path string) (ramState, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return ramState{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return ramState{
		Inode: st.Ino, Bytes: st.Size,
		Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano(),
		Regular: st.Mode&unix.S_IFMT == unix.S_IFREG && st.Uid == uint32(os.Geteuid()) && st.Mode&0o077 == 0,
	}, nil
}

const (
	format = 2 // raised when templates of an older husk must not be used

	ramFile     = "ram"
	devicesFile = "devices"
	descFile    = "template.json"

	// makingPrefix and the key name the directory of a template being made.
	makingPrefix = ".making-"

	// retryAfter is how long after a failure to make a template the containers of
	// its kind boot without another try, which takes as long as their own boot.
	retryAfter = 10 * time.Minute

	maxDescription = 1 << 20
	maxDevices     = 64 << 20 // bytes; measured 75 kB
)

var contents = []string{ramFile, devicesFile, descFile}

// ErrNone says that there is no usable template of a kind.
var ErrNone = errors.New("no template")

// Find returns the template of a kind after checking it. What is damaged or no
// longer what it was is removed, and the error says so and is ErrNone.
func (s Store) Find(k Kind) (*Template, error) {
	key := k.Key()
	dir := filepath.Join(s.Dir, key)
	err := check(dir, key)
	switch {
	case err == nil:
		noteUse(dir)
		return &Template{Key: key, RAM: filepath.Join(dir, ramFile), Devices: filepath.Join(dir, devicesFile)}, nil
	case errors.Is(err, fs.ErrNotExist) && !exists(dir):
		return nil, ErrNone
	}
	if rerr := remove(dir); rerr != nil {
		return nil, fmt.Errorf("%w: %w; removing it: %w", ErrNone, err, rerr)
	}
	return nil, &DiscardedError{err}
}

// DiscardedError is ErrNone where there was a template that could not be used.
type DiscardedError struct{ Why error }

func (e *DiscardedError) Error() string { return "discarded: " + e.Why.Error() }

// Unwrap returns why, and that there is none.
func (e *DiscardedError) Unwrap() []error { return []error{e.Why, ErrNone} }

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// check is cheap, for it is on the way of every start: RAM is checked by size
// and time of change, the device state by its hash.
func check(dir, key string) error {
	b, err := readBounded(filepath.Join(dir, descFile), maxDescription)
	if err != nil {
		return err
	}
	var d description
	if err := json.Unmarshal(b, &d); err != nil {
		return fmt.Errorf("read template: %w", err)
	}
	if d.Format != format || d.Key != key {
		return fmt.Errorf("template %s: describes another", key)
	}
	ram, err := stateOf(filepath.Join(dir, ramFile))
	if err != nil {
		return err
	}
	if ram != d.RAM || !ram.Regular {
		return fmt.Errorf("template %s: RAM has changed since it was made", key)
	}
	hash, err := hashFile(filepath.Join(dir, devicesFile))
	if err != nil {
		return err
	}
	if hash != d.DevicesHash {
		return fmt.Errorf("template %s: device state has changed since it was made", key)
	}
	return nil
}

// readBounded reads a regular file of at most limit bytes, and nothing else: a
// fifo in its place would wait for ever.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, fmt.Errorf("read %s: not a file of at most %d bytes", path, limit)
	}
	return io.ReadAll(io.LimitReader(f, limit))
}

func hashFile(path string) (string, error) {
	b, err := readBounded(path, maxDevices)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// Make makes the template of a kind unless another has made it meanwhile: make
// boots a guest whose RAM and device state end up in the two files it is given.
func (s Store) Make(ctx context.Context, k Kind, boot func(ctx context.Context, ram, devices string) error) (*Template, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	unlock, err := s.lock(ctx, k.Key())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if t, err := s.Find(k); err == nil {
		return t, nil
	}
	if info, err := os.Stat(s.failedFile(k.Key())); err == nil && time.Since(info.ModTime()) < retryAfter {
		return nil, fmt.Errorf("make template: it failed at %s and is tried again after %v: husk template create says why",
			info.ModTime().Format(time.TimeOnly), retryAfter)
	}
	// Each new kernel or husk makes new kinds; the old ones would stay for ever.
	if err := s.limit(); err != nil {
		return nil, err
	}
	temp := filepath.Join(s.Dir, makingPrefix+k.Key())
	// Left by a maker that was killed: the lock is ours now.
	if err := remove(temp); err != nil {
		return nil, err
	}
	if err := os.Mkdir(temp, 0o700); err != nil {
		return nil, fmt.Errorf("make template: %w", err)
	}
	err = boot(ctx, filepath.Join(temp, ramFile), filepath.Join(temp, devicesFile))
	if err == nil {
		err = describe(temp, k)
	}
	if err == nil {
		err = os.Rename(temp, filepath.Join(s.Dir, k.Key()))
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("make template: %w", err), remove(temp))
		// Where not even that can be noted, each container tries.
		_ = os.WriteFile(s.failedFile(k.Key()), nil, 0o600)
		return nil, err
	}
	return s.Find(k)
}

func describe(dir string, k Kind) error {
	ram, err := stateOf(filepath.Join(dir, ramFile))
	if err != nil {
		return err
	}
	hash, err := hashFile(filepath.Join(dir, devicesFile))
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(description{
		Format: format, Key: k.Key(), Kind: k, Created: time.Now().UTC(),
		RAM: ram, DevicesHash: hash,
	}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, descFile), b, 0o600)
}

// open makes the store's directory. What lies in it becomes the memory of a
// container's kernel, so it must be root's alone.
func (s Store) open() error {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return fmt.Errorf("open template store: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(s.Dir, &st); err != nil {
		return fmt.Errorf("open template store: %w", err)
	}
	if st.Uid != uint32(os.Geteuid()) || st.Mode&0o022 != 0 {
		return fmt.Errorf("open template store: %s belongs to or may be written by others", s.Dir)
	}
	return nil
}

// lock waits for the lock of a key until ctx ends. The lock's file stays: to
// remove it would let two hold "the" lock.
func (s Store) lock(ctx context.Context, key string) (unlock func(), err error) {
	f, err := os.OpenFile(s.lockFile(key), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock template: %w", err)
	}
	if err := flock.Wait(ctx, f); err != nil {
		return nil, fmt.Errorf("lock template: %w", err)
	}
	return func() { f.Close() }, nil
}

func (s Store) failedFile(key string) string { return filepath.Join(s.Dir, ".failed-"+key) }

// Retry lets the template of a key be made at once though it has failed lately.
func (s Store) Retry(key string) { _ = os.Remove(s.failedFile(key)) }

func (s Store) lockFile(key string) string { return filepath.Join(s.Dir, "."+key+".lock") }

// Discard removes the template of a key, e.g. after a VM could not wake up from it.
func (s Store) Discard(key string) error { return remove(filepath.Join(s.Dir, key)) }

// remove removes a template. VMs that map its RAM keep it. First it loses its
// name, so that nothing that somebody put there can stand in the way of a new
// one; then its files go, each by its name and none recursively, for a directory
// in a file's place could hold a mount. What is not a template's own stays, under
// a name that nobody looks at.
func remove(dir string) error {
	moved := dir
	gone, err := os.MkdirTemp(filepath.Dir(dir), ".gone-")
	if err == nil {
		defer func() { _ = os.Remove(gone) }()
		moved = filepath.Join(gone, "template")
		switch err := os.Rename(dir, moved); {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case errors.Is(err, unix.EXDEV):
			moved = dir // on an overlay, whose directories cannot all be renamed
		case err != nil:
			return fmt.Errorf("remove template: %w", err)
		}
	}
	// Without room for another directory the files go from where they are.
	for _, name := range contents {
		_ = os.Remove(filepath.Join(moved, name))
	}
	_ = os.Remove(moved)
	return nil
}
