package template

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Entry describes one template of a store for users.
type Entry struct {
	Key     string    `json:"key"`
	Kind    Kind      `json:"kind"`
	Created time.Time `json:"created"`
	Used    time.Time `json:"used"`
	Bytes   int64     `json:"bytes"` // on disk; RAM files are sparse
	// Usable: containers of this husk can start from it on this host. The caller of List sets
	// it.
	Usable bool `json:"usable"`
}

// List returns the store's templates. Of one that cannot be read only the key is known.
func (s Store) List() ([]Entry, error) {
	dirs, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list templates: %w", err)
	}
	var all []Entry
	for _, dir := range dirs {
		if !dir.IsDir() || strings.HasPrefix(dir.Name(), ".") {
			continue
		}
		all = append(all, entry(filepath.Join(s.Dir, dir.Name())))
	}
	return all, nil
}

func entry(dir string) Entry {
	e := Entry{Key: filepath.Base(dir)}
	var d description
	b, err := readBounded(filepath.Join(dir, descFile), maxDescription)
	if err == nil && json.Unmarshal(b, &d) == nil {
		e.Kind, e.Created = d.Kind, d.Created
	}
	if info, err := os.Stat(filepath.Join(dir, descFile)); err == nil {
		e.Used = info.ModTime()
	}
	for _, name := range contents {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(dir, name), &st) == nil {
			e.Bytes += st.Blocks * 512
		}
	}
	return e
}

// Prune removes templates from which no VM has started for longer than unused, 0 meaning all.
// With keys it removes only those of them. Running VMs keep their template's memory. It returns
// what it has removed. If a key has no template, it returns an error and removes nothing.
func (s Store) Prune(unused time.Duration, keys ...string) ([]Entry, error) {
	all, err := s.List()
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		if !slices.ContainsFunc(all, func(e Entry) bool { return e.Key == key }) {
			return nil, fmt.Errorf("prune: no template has the key %q", key)
		}
	}
	if len(keys) > 0 {
		all = slices.DeleteFunc(all, func(e Entry) bool { return !slices.Contains(keys, e.Key) })
	}
	var removed []Entry
	for _, e := range all {
		if time.Since(e.Used) < unused {
			continue
		}
		if err := s.Discard(e.Key); err != nil {
			return removed, err
		}
		removed = append(removed, e)
	}
	return removed, nil
}

// limit removes what exceeds the store's limits: first templates that were unused for too long,
// then those unused for longest until the rest fits.
func (s Store) limit() error {
	if s.MaxAge > 0 {
		if _, err := s.Prune(s.MaxAge); err != nil {
			return err
		}
	}
	if err := s.removeHalfMade(); err != nil {
		return err
	}
	if s.MaxBytes <= 0 {
		return nil
	}
	all, err := s.List()
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b Entry) int { return b.Used.Compare(a.Used) })
	var total int64
	for i, e := range all {
		total += e.Bytes
		// The newest template stays, however large it is, because it was just made.
		if i == 0 || total <= s.MaxBytes {
			continue
		}
		if err := s.Discard(e.Key); err != nil {
			return err
		}
	}
	return nil
}

// removeHalfMade removes what makers that were killed have left. Nobody holds the lock of such
// a template.
func (s Store) removeHalfMade() error {
	left, err := filepath.Glob(filepath.Join(s.Dir, makingPrefix+"*"))
	if err != nil {
		return fmt.Errorf("find half-made templates: %w", err)
	}
	for _, dir := range left {
		f, err := os.OpenFile(s.lockFile(strings.TrimPrefix(filepath.Base(dir), makingPrefix)), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return fmt.Errorf("lock half-made template: %w", err)
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = remove(dir)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// noteUse sets the time of use, by which Prune decides.
func noteUse(dir string) {
	now := time.Now()
	// If this fails, the template is removed after a week and made again.
	_ = os.Chtimes(filepath.Join(dir, descFile), now, now)
}
