// Package template keeps memory templates. A template is a guest that has booted up to where
// its agent waits for a host, and was saved, so that later VMs of the same kind wake up there
// instead of booting. No container has ever run in it.
//
// A template is a directory with the guest's RAM as a sparse file, the state of its devices,
// and a description by which both are checked before use. The first call that needs it makes it
// under a lock; it appears by rename.
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

// Store is the directory of the templates, which only root may enter, and its limits; 0 means
// no limit. The limits are applied when a template is made.
type Store struct {
	Dir      string
	MaxAge   time.Duration // since the last start from it
	MaxBytes int64         // on disk, of all templates together
}

// StoreOf returns the store that the settings describe.
func StoreOf(settings *config.Config) Store {
	return Store{
		Dir:    filepath.Join(settings.Cache, "templates"),
		MaxAge: time.Duration(settings.TemplatesMaxAge), MaxBytes: int64(settings.TemplatesMaxMiB) << 20,
	}
}

// Template is a template that was checked and may be used.
type Template struct {
	Key     string
	RAM     string // path of the file with the guest's RAM
	Devices string // path of the device state
}

// description is the file that describes a template.
type description struct {
	Format      int       `json:"format"`
	Key         string    `json:"key"`
	Kind        Kind      `json:"kind"` // for users: the key is computed from it
	Created     time.Time `json:"created"`
	RAM         ramState  `json:"ram"`
	DevicesHash string    `json:"devicesHash"`
}

// ramState identifies the saved RAM file. The file is not read, because that would take longer
// than booting. Its time of change cannot be set back by somebody who rewrites the file. Damage
// below the file system is not noticed here; the guest does not answer then. The number of
// blocks is not compared, because it changes until the file has reached the disk.
type ramState struct {
	Inode   uint64 `json:"inode"`
	Bytes   int64  `json:"bytes"`
	Mtime   int64  `json:"mtime"` // nanoseconds after the epoch
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
	format = 2 // raise it when templates of older versions must not be used

	ramFile     = "ram"
	devicesFile = "devices"
	descFile    = "template.json"

	// makingPrefix and the key form the name of a template's directory while it is being made.
	makingPrefix = ".making-"

	// retryAfter is how long containers boot, after making a template of their kind has failed,
	// before it is tried again. A try takes as long as the container's own boot.
	retryAfter = 10 * time.Minute

	maxDescription = 1 << 20
	maxDevices     = 64 << 20 // bytes; about 75 kB are normal
)

var contents = []string{ramFile, devicesFile, descFile}

// ErrNone means that there is no usable template of a kind.
var ErrNone = errors.New("no template")

// Find returns the template of a kind after checking it. A template that is damaged or was
// changed is removed, and the error is a *DiscardedError. If there is none, the error is
// ErrNone.
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

// DiscardedError is an ErrNone for a template that could not be used and was removed.
type DiscardedError struct{ Why error }

func (e *DiscardedError) Error() string { return "discarded: " + e.Why.Error() }

// Unwrap returns the reason and ErrNone.
func (e *DiscardedError) Unwrap() []error { return []error{e.Why, ErrNone} }

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// check checks a template. It must be fast, because every start waits for it: RAM is checked by
// size and time of change, and the device state by its hash.
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

// readBounded reads a regular file of at most limit bytes. It returns an error for other kinds
// of files; a fifo would block it for ever.
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

// Make makes the template of a kind, unless another process has made it meanwhile. boot boots a
// guest and saves its RAM and device state to the two files.
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
	// Each new kernel or husk makes new kinds, so templates of old ones have to be removed.
	if err := s.limit(); err != nil {
		return nil, err
	}
	temp := filepath.Join(s.Dir, makingPrefix+k.Key())
	// A maker that was killed has left it, because the lock is ours now.
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
		// If this cannot be noted, each container tries again.
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

// open makes the store's directory. Its files become the memory of a container's kernel, so
// only root may have access.
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

// lock waits for the lock of a key until ctx ends. The lock's file is never removed: otherwise
// two processes could each hold a lock on a different file of that name.
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

// Retry allows making the template of a key at once although it has failed lately.
func (s Store) Retry(key string) { _ = os.Remove(s.failedFile(key)) }

func (s Store) lockFile(key string) string { return filepath.Join(s.Dir, "."+key+".lock") }

// Discard removes the template of a key, for example after a VM could not wake up from it.
func (s Store) Discard(key string) error { return remove(filepath.Join(s.Dir, key)) }

// remove removes a template. VMs that map its RAM keep it. First the directory is renamed, so
// that nothing in it can prevent a new template. Then its files are removed by name and never
// recursively, because a directory in place of a file could be a mount point. Other files stay,
// under a name that nobody looks at.
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
			moved = dir // some directories on an overlay cannot be renamed
		case err != nil:
			return fmt.Errorf("remove template: %w", err)
		}
	}
	// If there is no space for another directory, the files are removed under the old name.
	for _, name := range contents {
		_ = os.Remove(filepath.Join(moved, name))
	}
	_ = os.Remove(moved)
	return nil
}
