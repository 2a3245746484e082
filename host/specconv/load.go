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

// maxConfigBytes bounds the size of config.json and of process files. Docker's config.json has
// about 40 KiB. Without the bound a wrong path (a disk image, /dev/zero) would fill the host's
// memory.
const maxConfigBytes = 16 << 20

// Load reads config.json of the bundle at this host path. Only create calls it: later verbs use
// what create has saved. Error texts are runc's where it has one.
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
		// Opening a fifo would block for ever.
		return nil, fmt.Errorf("read spec: %s is not a regular file", quote(path))
	}
	b, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("read spec: %w", err)
	}
	return decode(b)
}

// LoadProcess reads the process file of exec at this host path, which may be a pipe such as
// /dev/stdin.
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
	defer func() { _ = f.Close() }() // it was only read
	b, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxConfigBytes {
		return nil, fmt.Errorf("%s is larger than %d MiB", quote(path), maxConfigBytes>>20)
	}
	return b, nil
}

// checkDir returns an error for a missing bundle, so that it does not look like a missing
// config.json. The text is that of runc's chdir.
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

// decode parses config.json. The decoder's own error text is kept: engines and people know it,
// and for a wrong type it names the field.
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
