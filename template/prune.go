package template

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// KeepUnused is how long a template stays that nobody starts from: long enough
// for a machine that is off over the weekend.
const KeepUnused = 7 * 24 * time.Hour

// Entry is one template of a store, for people.
type Entry struct {
	Key     string    `json:"key"`
	Kind    Kind      `json:"kind"`
	Created time.Time `json:"created"`
	Used    time.Time `json:"used"`
	Bytes   int64     `json:"bytes"` // on disk; RAM files are sparse
}

// List returns the store's templates; what cannot be read is listed by its key
// alone.
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

// Prune removes templates that nobody has started from for longer than unused;
// with 0 all of them. VMs that run on one keep it. It returns what it removed.
func (s Store) Prune(unused time.Duration) ([]Entry, error) {
	all, err := s.List()
	if err != nil {
		return nil, err
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

// noteUse sets the time by which Prune judges.
func noteUse(dir string) {
	now := time.Now()
	// Where it fails, the template is made anew in a week.
	_ = os.Chtimes(filepath.Join(dir, descFile), now, now)
}
