// Package failures keeps the reasons why virtual machines have ended under their containers,
// and writes them to the host's log. An engine gets only an exit code, and a container's other
// files are removed when it is deleted.
package failures

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/huskvm/husk/host/detached"
)

// Bounds of what is kept.
const (
	// MaxAge is how long a failure is kept. MaxCount is the number of failures of all
	// containers, and MaxOfOne that of one container, so that a container which is restarted
	// after each failure does not push out the others.
	MaxAge   = 30 * 24 * time.Hour
	MaxCount = 100
	MaxOfOne = 10

	maxLines = 20   // lines of the console
	maxLine  = 400  // bytes of one line
	maxCause = 1000 // bytes of the cause
	// maxFile bounds what is read of one file, in bytes. It is larger than anything that is
	// written.
	maxFile = 64 << 10
	// halfAge is how long writing a file may take. Older unfinished files are removed.
	halfAge = time.Minute
)

// Failure describes the end of one virtual machine.
type Failure struct {
	Time time.Time `json:"time"`
	ID   string    `json:"id"` // the container's id
	// Cause and each entry of Console, the last lines of the guest's console, are single lines
	// without control characters.
	Cause   string   `json:"cause"`
	Console []string `json:"console,omitempty"`
}

// New returns a failure. cause and console may come from the guest: control characters are
// removed and the size is bounded.
func New(id, cause, console string) Failure {
	f := Failure{Time: time.Now().UTC(), ID: id, Cause: cleanLine(cause, maxCause)}
	for line := range strings.Lines(strings.TrimSpace(console)) {
		f.Console = append(f.Console, cleanLine(line, maxLine))
	}
	if n := len(f.Console); n > maxLines {
		f.Console = f.Console[n-maxLines:]
	}
	return f
}

// cleanLine returns text as one line of at most limit bytes, without characters that a terminal
// or a log would interpret.
func cleanLine(text string, limit int) string {
	text = strings.Map(func(c rune) rune {
		switch {
		case c == '\n', c == '\t':
			return ' '
		case unicode.IsControl(c), unicode.Is(unicode.Cf, c), c == '\u2028', c == '\u2029':
			return -1
		}
		return c
	}, strings.ToValidUTF8(strings.TrimSpace(text), "?"))
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit], "")
	}
	return text
}

// Line returns the failure as one line.
func (f Failure) Line() string {
	line := fmt.Sprintf("container %s: %s", f.ID, f.Cause)
	if len(f.Console) > 0 {
		line += "; the guest's console ended with: " + strings.Join(f.Console, " | ")
	}
	return line
}

// Store is the open directory in which failures are kept. It works without a path.
type Store struct{ root *os.Root }

// Open opens the directory, which only root may enter, and makes it if it is missing.
func Open(dir string) (*Store, error) { return open(dir, os.OpenRoot) }

// OpenDetached is Open for the supervisor, which keeps the directory open for long: no other
// directory of the host can be reached from it.
func OpenDetached(dir string) (*Store, error) { return open(dir, detached.OpenRoot) }

func open(dir string, openRoot func(string) (*os.Root, error)) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open failures: %w", err)
	}
	root, err := openRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open failures: %w", err)
	}
	return &Store{root}, nil
}

// Close closes the directory.
func (s *Store) Close() error { return s.root.Close() }

// suffix returns the end of the file names of one container's failures.
func suffix(id string) string {
	sum := sha256.Sum256([]byte(id))
	return "-" + hex.EncodeToString(sum[:8]) + ".json"
}

// timeFormat makes names whose alphabetical order is that of time.
const timeFormat = "20060102T150405.000000000"

// Add keeps a failure, and removes old ones beyond the bounds.
func (s *Store) Add(f Failure) error {
	b, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("encode failure: %w", err)
	}
	name := f.Time.UTC().Format(timeFormat) + suffix(f.ID)
	temp := "." + name
	if err := s.root.WriteFile(temp, b, 0o600); err != nil {
		return fmt.Errorf("keep failure: %w", err)
	}
	if err := s.root.Rename(temp, name); err != nil {
		return errors.Join(fmt.Errorf("keep failure: %w", err), s.root.Remove(temp))
	}
	return s.prune(f.Time)
}

// names returns the files' names, the oldest first.
func (s *Store) names() ([]string, error) {
	entries, err := fs.ReadDir(s.root.FS(), ".")
	if err != nil {
		return nil, err
	}
	var all []string
	for _, e := range entries {
		if len(e.Name()) > len(timeFormat) && strings.HasSuffix(e.Name(), ".json") {
			all = append(all, e.Name())
		}
	}
	slices.Sort(all)
	return all, nil
}

func (s *Store) prune(now time.Time) error {
	all, err := s.names()
	if err != nil {
		return fmt.Errorf("prune failures: %w", err)
	}
	before := func(d time.Duration) string { return now.Add(-d).UTC().Format(timeFormat) }
	kept, ofOne := 0, map[string]int{}
	for _, name := range slices.Backward(all) {
		if half, hidden := strings.CutPrefix(name, "."); hidden {
			// The file is being written, or its writer was killed.
			if half > before(halfAge) {
				continue
			}
		} else if one := name[len(timeFormat):]; name > before(MaxAge) && kept < MaxCount && ofOne[one] < MaxOfOne {
			kept++
			ofOne[one]++
			continue
		}
		// Another process may have removed it.
		if err := s.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("prune failures: %w", err)
		}
	}
	return nil
}

// List returns the failures of containers whose id begins with prefix, the oldest first. Files
// that cannot be read are left out.
func (s *Store) List(prefix string) ([]Failure, error) {
	names, err := s.names()
	if err != nil {
		return nil, fmt.Errorf("list failures: %w", err)
	}
	oldest := time.Now().Add(-MaxAge)
	all := []Failure{} // not nil, which would be null in JSON
	for _, name := range names {
		f, err := s.read(name)
		if name[0] != '.' && err == nil && strings.HasPrefix(f.ID, prefix) && f.Time.After(oldest) {
			all = append(all, f)
		}
	}
	return all, nil
}

func (s *Store) read(name string) (f Failure, err error) {
	file, err := s.root.Open(name)
	if err != nil {
		return f, err
	}
	defer file.Close()
	return f, json.NewDecoder(io.LimitReader(file, maxFile)).Decode(&f)
}
