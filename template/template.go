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
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/flock"
)

// Store is the directory templates are kept in, root only.
type Store struct{ Dir string }

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
	RAMBytes    int64     `json:"ramBytes"`
	RAMChanged  int64     `json:"ramChanged"` // ns after the epoch: it must not have been touched since
	DevicesHash string    `json:"devicesHash"`
}

const (
	format = 1 // raised when templates of an older husk must not be used

	ramFile     = "ram"
	devicesFile = "devices"
	descFile    = "template.json"

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
	return nil, fmt.Errorf("%w: discarded: %w", ErrNone, err)
}

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
	info, err := os.Stat(filepath.Join(dir, ramFile))
	if err != nil {
		return err
	}
	if info.Size() != d.RAMBytes || info.ModTime().UnixNano() != d.RAMChanged {
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

func readBounded(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("read %s: larger than %d bytes", path, limit)
	}
	return os.ReadFile(path)
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
	// Each new kernel or husk makes new kinds; the old ones would stay for ever.
	if _, err := s.Prune(KeepUnused); err != nil {
		return nil, err
	}
	temp, err := os.MkdirTemp(s.Dir, ".making-")
	if err != nil {
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
		return nil, errors.Join(fmt.Errorf("make template: %w", err), remove(temp))
	}
	return s.Find(k)
}

func describe(dir string, k Kind) error {
	info, err := os.Stat(filepath.Join(dir, ramFile))
	if err != nil {
		return err
	}
	hash, err := hashFile(filepath.Join(dir, devicesFile))
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(description{
		Format: format, Key: k.Key(), Kind: k, Created: time.Now().UTC(),
		RAMBytes: info.Size(), RAMChanged: info.ModTime().UnixNano(), DevicesHash: hash,
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
	f, err := os.OpenFile(filepath.Join(s.Dir, "."+key+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock template: %w", err)
	}
	if err := flock.Wait(ctx, f); err != nil {
		return nil, fmt.Errorf("lock template: %w", err)
	}
	return func() { f.Close() }, nil
}

// Discard removes the template of a key, e.g. after a VM could not wake up from it.
func (s Store) Discard(key string) error { return remove(filepath.Join(s.Dir, key)) }

// remove removes a template's files by name. VMs that map its RAM keep it.
func remove(dir string) error {
	for _, name := range contents {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove template: %w", err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove template: %w", err)
	}
	return nil
}
