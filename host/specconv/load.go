package specconv

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// maxConfigBytes bounds config.json and process files. Docker's is about 40 KiB; the bound keeps a
// wrong path (a disk image, /dev/zero) from filling the host's memory.
const maxConfigBytes = 16 << 20

// Load reads config.json of the bundle at the host path bundle. It is the only
// read of it: later verbs use what create has saved. Error texts are runc's
// where runc has one.
func Load(bundle string) (*specs.Spec, error) {
	if err := checkDir(bundle); err != nil {
		return nil, err
	}
	path := filepath.Join(bundle, "config.json")
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, errors.New("JSON specification file config.json not found")
	case err != nil:
		return nil, fmt.Errorf("read spec: %w", err)
	case !info.Mode().IsRegular():
		// A fifo would block for ever in open.
		return nil, fmt.Errorf("read spec: %s is not a regular file", quote(path))
	}
	b, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("read spec: %w", err)
	}
	return decode(b)
}

// LoadProcess reads the process file of exec at a host path; a pipe will do as
// well, e.g. /dev/stdin.
func LoadProcess(path string) (*specs.Process, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("read process: %w", err)
	}
	p := &specs.Process{}
	if err := json.Unmarshal(b, p); err != nil {
		return nil, fmt.Errorf("read process: %w", err)
	}
	return p, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read from: nothing to lose
	b, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxConfigBytes {
		return nil, fmt.Errorf("%s is larger than %d MiB", quote(path), maxConfigBytes>>20)
	}
	return b, nil
}

// checkDir gives a missing bundle its own error, with the text of the chdir that
// runc does, so that it isn't mistaken for a missing config.json.
func checkDir(bundle string) error {
	info, err := os.Stat(bundle)
	var perr *fs.PathError
	switch {
	case errors.As(err, &perr):
		return &fs.PathError{Op: "chdir", Path: bundle, Err: perr.Err}
	case err != nil:
		return fmt.Errorf("read bundle: %w", err)
	case !info.IsDir():
		return fmt.Errorf("chdir %s: not a directory", bundle)
	}
	return nil
}

// decode is Load without the file. The decoder's own text is kept: engines and
// people know it, and for a wrong type it names the field.
func decode(b []byte) (*specs.Spec, error) {
	spec := &specs.Spec{}
	if err := json.Unmarshal(b, spec); err != nil {
		return nil, err
	}
	if err := checkTwice(b); err != nil {
		return nil, err
	}
	return spec, nil
}
