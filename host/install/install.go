// Package install adds husk to the configuration files of engines and removes it again. It
// changes nothing else in them.
package install

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Engine is an engine whose configuration this package knows.
type Engine struct {
	Name string
	// DefaultFile is the absolute path of its configuration file.
	DefaultFile string
	// Reload is a sentence that says what the user has to do after a change.
	Reload string
	// Try is a command that runs a container with husk afterwards.
	Try string
	// Program is an executable that exists if the engine is installed.
	Program string

	// add and remove return the new content of the file. old is nil if there is no file. A nil
	// result means that the file is removed.
	add    func(old []byte, binary string) ([]byte, error)
	remove func(old []byte) ([]byte, error)
}

// Engines are all engines that are supported.
var Engines = []*Engine{
	{
		Name: "docker", DefaultFile: "/etc/docker/daemon.json",
		Reload: "make dockerd read it: systemctl reload docker (or send dockerd SIGHUP)",
		Try:    "docker run --rm --runtime husk IMAGE uname -r", Program: "dockerd",
		add: addDocker, remove: removeDocker,
	},
	{
		Name: "podman", DefaultFile: "/etc/containers/containers.conf.d/husk.conf",
		Reload: "nothing is to be reloaded",
		Try:    "podman --runtime husk run --rm IMAGE uname -r", Program: "podman",
		add: addPodman, remove: removePodman,
	},
	{
		Name: "containerd", DefaultFile: "/etc/containerd/config.toml",
		Reload: "make containerd read it: systemctl restart containerd (containers go on)",
		Try:    "the runtime handler husk, for example a Kubernetes RuntimeClass with handler: husk", Program: "containerd",
		add: addContainerd, remove: removeContainerd,
	},
}

// Find returns the engine with this name; nil if there is none.
func Find(name string) *Engine {
	for _, e := range Engines {
		if e.Name == name {
			return e
		}
	}
	return nil
}

// Change is a planned change of one file.
type Change struct {
	Path          string
	Before, After []byte // nil: no file
}

// Nothing says whether the file needs no change.
func (c *Change) Nothing() bool {
	return bytes.Equal(c.Before, c.After) && (c.Before == nil) == (c.After == nil)
}

// Add plans the change that adds binary, an absolute path, as the runtime husk. It changes
// nothing.
func (e *Engine) Add(file, binary string) (*Change, error) {
	return e.change(file, func(old []byte) ([]byte, error) { return e.add(old, binary) })
}

// Remove plans the change that undoes Add. It changes nothing.
func (e *Engine) Remove(file string) (*Change, error) {
	return e.change(file, func(old []byte) ([]byte, error) {
		if old == nil {
			return nil, nil
		}
		return e.remove(old)
	})
}

// Knows says whether the engine's default configuration file has husk as a runtime.
func (e *Engine) Knows() (bool, error) {
	c, err := e.Remove("")
	if err != nil {
		return false, err
	}
	return !c.Nothing(), nil
}

func (e *Engine) change(file string, edit func(old []byte) ([]byte, error)) (*Change, error) {
	if file == "" {
		file = e.DefaultFile
	}
	// A link is followed, because a rename over the link would leave the file that it points to
	// unchanged.
	if path, err := filepath.EvalSymlinks(file); err == nil {
		file = path
	}
	old, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read %s's configuration: %w", e.Name, err)
	}
	if err == nil && old == nil {
		old = []byte{}
	}
	c := &Change{Path: file, Before: old}
	if c.After, err = edit(old); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

// Apply makes the change. If the file exists, it is copied first; backup is the path of the
// copy.
func (c *Change) Apply(now time.Time) (backup string, err error) {
	mode := fs.FileMode(0o644)
	uid, gid := -1, -1
	if c.Before != nil {
		info, err := os.Stat(c.Path)
		if err != nil {
			return "", fmt.Errorf("keep a copy: %w", err)
		}
		mode = info.Mode().Perm()
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			uid, gid = int(st.Uid), int(st.Gid)
		}
		backup = c.Path + ".before-husk-" + now.UTC().Format("20060102T150405")
		if err := write(backup, c.Before, mode, uid, gid); err != nil {
			return "", fmt.Errorf("keep a copy: %w", err)
		}
	}
	if c.After == nil {
		if err := os.Remove(c.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return backup, fmt.Errorf("remove configuration: %w", err)
		}
		return backup, nil
	}
	if err := os.MkdirAll(filepath.Dir(c.Path), 0o755); err != nil {
		return backup, fmt.Errorf("write configuration: %w", err)
	}
	if err := write(c.Path, c.After, mode, uid, gid); err != nil {
		return backup, fmt.Errorf("write configuration: %w", err)
	}
	return backup, nil
}

// write replaces a file by rename, so that an engine never reads half of it.
func write(path string, content []byte, mode fs.FileMode, uid, gid int) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".husk-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if uid >= 0 {
		if err := f.Chown(uid, gid); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
