// Package isolation hands a container over to another OCI runtime of the host, runc or crun, in
// place of making a virtual machine for it. That happens only if the administrator lets
// containers choose and the container's annotation asks for it.
//
// The container's saved state (state.Container.HandedTo) records which runtime has an id. It is
// written before the other runtime is executed in place of husk, in the same process, so that
// the other runtime inherits everything that the engine has passed. From then on each verb for
// the id executes the other runtime with the same arguments. The record is removed when the
// other runtime has no state of the container any more.
package isolation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/config"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/state"
)

// Choose returns the absolute path of the runtime to which a container is handed over, or "" if
// husk makes a VM for it. If the settings do not let containers choose, it ignores the
// annotation: specconv.Convert refuses one that asks for less than a VM.
func Choose(settings *config.Config, bundle string) (runtime string, err error) {
	if settings.Isolation != config.IsolationAnnotation {
		return "", nil
	}
	spec, err := specconv.Load(bundle)
	if err != nil {
		return "", err
	}
	if spec.Annotations[specconv.AnnotationIsolation] != specconv.IsolationRunc {
		return "", nil
	}
	return find(settings.Runc)
}

// find returns the runtime of the settings file, or else the first one that the host has.
func find(configured string) (string, error) {
	names := []string{"runc", "crun"}
	if configured != "" {
		names = []string{configured}
	}
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return filepath.Abs(path)
		}
	}
	return "", fmt.Errorf("%s: this host has no such runtime: %v: install runc, or name another by the setting runc", specconv.AnnotationIsolation, names)
}

// Record notes that a container is about to be handed over to a runtime. It returns the
// runtime's directory for the state of this one container. It returns state.ErrExist if the id
// is in use.
func Record(root, id, bundle, runtime string) (*state.Handed, error) {
	creator, err := state.ProcessOf(os.Getpid())
	if err != nil {
		return nil, err
	}
	if bundle, err = filepath.Abs(bundle); err != nil {
		return nil, fmt.Errorf("resolve bundle: %w", err)
	}
	handed := &state.Handed{Runtime: runtime, Root: filepath.Join(root, id, state.HandedDir)}
	dir, err := state.Create(root, &state.Container{
		OCIVersion: specs.Version, ID: id, Bundle: bundle, Created: time.Now().UTC(), Creator: creator, HandedTo: handed,
	})
	if err != nil {
		return nil, err
	}
	dir.Close()
	return handed, nil
}

// Find returns the runtime that has a container; nil if husk has it, or nobody. It removes a
// record of a container that the runtime no longer has.
func Find(ctx context.Context, root, id string) (*state.Handed, error) {
	c, err := state.Find(root, id)
	if err != nil || c.HandedTo == nil {
		// The verb itself reports what is wrong with the id.
		return nil, nil
	}
	if !over(c) {
		return c.HandedTo, nil
	}
	dir, err := state.Open(root, id)
	if errors.Is(err, state.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	if err := dir.Lock(ctx); err != nil {
		return nil, err
	}
	// It is read again under the lock, because the id may have a new owner.
	if c, err = dir.Load(); err != nil || c.HandedTo == nil || !over(c) {
		return nil, nil
	}
	return nil, dir.Remove()
}

// removeTimeout bounds the wait for another husk call that has locked the record.
const removeTimeout = 10 * time.Second

// over says whether the runtime has no state of the container and will not make one: the
// process that wrote the record has executed the runtime's create and that has ended, or it has
// ended itself.
func over(c *state.Container) bool {
	if c.Creator.Alive() {
		return false
	}
	_, err := os.Lstat(filepath.Join(c.HandedTo.Root, c.ID))
	return errors.Is(err, fs.ErrNotExist)
}

// describeTimeout bounds the other runtime's answer to state, for which it reads a file.
const describeTimeout = 10 * time.Second

// Describe asks the runtime that has the container what state and list print. It returns
// state.ErrNotExist if the runtime does not have it any more, and removes the record.
func Describe(ctx context.Context, root string, c *state.Container) (state.Description, error) {
	d := state.Description{}
	if handed, err := Find(ctx, root, c.ID); err != nil || handed == nil {
		return d, errors.Join(state.ErrNotExist, err)
	}
	ctx, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, c.HandedTo.Runtime, "--root", c.HandedTo.Root, "state", c.ID).Output()
	if err == nil {
		err = json.Unmarshal(out, &d)
	}
	if err != nil {
		return d, fmt.Errorf("ask %s for container %s: %w", c.HandedTo.Runtime, c.ID, err)
	}
	return d, nil
}
