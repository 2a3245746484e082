package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Remove removes what husk has put into the directory, name by name and never recursively, so
// that an unexpected mount makes it fail and loses no files. What is gone already is ignored.
// The container keeps its name until only the state is left, and until then Remove may be
// called again. After that the directory is renamed, so the id is free however this call ends,
// and Sweep removes the rest.
func (d *Dir) Remove() error {
	for _, name := range contents[:len(contents)-1] {
		if err := d.removeName(name); err != nil {
			return err
		}
	}
	// If there is no space for another directory, it is removed under its own name.
	if temp, err := os.MkdirTemp(filepath.Dir(d.Path), deletingPrefix); err == nil {
		if err := os.Rename(d.Path, temp); err != nil {
			_ = os.Remove(temp) // usually it has been renamed
		} else {
			d.Path = temp
		}
	}
	return d.removeRest()
}

// removeRest removes the files that are left, and the directory.
func (d *Dir) removeRest() error {
	for _, name := range contents {
		if err := d.removeName(name); err != nil {
			return err
		}
	}
	if err := os.Remove(d.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove state directory: %w", err)
	}
	return nil
}

func (d *Dir) removeName(name string) error {
	remove := d.root.Remove
	if name == HandedDir {
		// The other runtime's: crun keeps compiled filters there. It mounts nothing there.
		remove = d.root.RemoveAll
	}
	if err := remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove state directory %s: %w", d.Path, err)
	}
	return nil
}

// Sweep removes what creates and deletes that were killed have left half made below root.
// Nobody holds the lock of such a directory. Errors are ignored, because the next Sweep tries
// again.
func Sweep(root string) {
	entries, _ := os.ReadDir(root)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), creatingPrefix) && !strings.HasPrefix(e.Name(), deletingPrefix) {
			continue
		}
		path := filepath.Join(root, e.Name())
		d, err := open(path)
		if err != nil {
			continue
		}
		// The lock is ours and the name is unchanged: either its create has ended, or has not
		// locked it yet and will make another directory.
		if d.tryLock() == nil && d.isAt(path) {
			_ = d.removeRest()
		}
		d.Close()
	}
}
