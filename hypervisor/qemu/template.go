package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/huskvm/husk/hypervisor"
)

// A template is a VM's RAM in one file, which clones map privately, and the state of its
// devices in another. For QEMU both saving and waking up are a migration. The capability
// x-ignore-shared leaves the RAM out of the migration stream, because the file has it.

// isClone says whether the machine wakes up from a template.
func isClone(cfg hypervisor.Config) bool { return cfg.RAMFile != "" && !cfg.RAMShared }

func checkTemplate(cfg hypervisor.Config) error {
	if (cfg.RAMFile == "") != (cfg.DeviceState == "") {
		return errors.New("a template needs both a file for RAM and one for the device state")
	}
	if cfg.RAMFile == "" {
		return nil
	}
	for _, path := range []string{cfg.RAMFile, cfg.DeviceState} {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("template file %q is not an absolute path", path)
		}
	}
	return nil
}

// marks are the events for which restore and Save wait.
type marks struct {
	channel, resumed, migrated *mark
	failed                     *mark
}

// mark is an event. It is closed when it has happened.
type mark struct {
	once sync.Once
	ch   chan struct{}
}

func newMarks() marks {
	m := func() *mark { return &mark{ch: make(chan struct{})} }
	return marks{channel: m(), resumed: m(), migrated: m(), failed: m()}
}

func (m *mark) set() { m.once.Do(func() { close(m.ch) }) }

func (m *marks) note(name string, data json.RawMessage) {
	var body struct {
		ID     string `json:"id"`
		Open   bool   `json:"open"`
		Status string `json:"status"`
	}
	switch name {
	case "RESUME":
		m.resumed.set()
	case "VSERPORT_CHANGE":
		if json.Unmarshal(data, &body) == nil && body.ID == channelID && body.Open {
			m.channel.set()
		}
	case "MIGRATION":
		switch err := json.Unmarshal(data, &body); {
		case err != nil:
		case body.Status == "completed":
			m.migrated.set()
		case body.Status == "failed":
			m.failed.set()
		}
	}
}

// await waits for a mark. It returns an error if a migration fails or the vmm ends.
func (v *vm) await(ctx context.Context, m *mark, what string) error {
	select {
	case <-m.ch:
		return nil
	case <-v.marks.failed.ch:
		return fmt.Errorf("%s: qemu's migration failed", what)
	case <-v.qmp.ended:
		return fmt.Errorf("%s: %w", what, errQMPClosed)
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
}

// migrate starts a migration to or from file.
func (v *vm) migrate(ctx context.Context, command string, file *os.File) error {
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	args := map[string][]capability{"capabilities": {{"x-ignore-shared", true}, {"events", true}}}
	if err := v.qmp.Execute(ctx, "migrate-set-capabilities", args, nil); err != nil {
		return err
	}
	const name = "device-state"
	if err := v.qmp.PassFile(ctx, name, file); err != nil {
		return err
	}
	return v.qmp.Execute(ctx, command, map[string]string{"uri": "fd:" + name}, nil)
}

// restore wakes the VM up from the device state in the file hostPath.
func (v *vm) restore(ctx context.Context, hostPath string) error {
	f, err := os.Open(hostPath)
	if err != nil {
		return fmt.Errorf("restore template: %w", err)
	}
	// It is only read.
	defer f.Close()
	if err := v.migrate(ctx, "migrate-incoming", f); err != nil {
		return fmt.Errorf("restore template: %w", err)
	}
	if err := v.await(ctx, v.marks.migrated, "restore template"); err != nil {
		return err
	}
	// The VM was stopped when it was saved, so it wakes up stopped.
	if err := v.qmp.Execute(ctx, "cont", nil, nil); err != nil {
		return fmt.Errorf("restore template: %w", err)
	}
	return v.await(ctx, v.marks.resumed, "restore template")
}

// AwaitChannel implements hypervisor.Saver.
func (v *vm) AwaitChannel(ctx context.Context) error {
	return v.await(ctx, v.marks.channel, "wait for the guest to open its channel")
}

// Save implements hypervisor.Saver.
func (v *vm) Save(ctx context.Context) error {
	f, err := os.OpenFile(v.devices, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("save template: %w", err)
	}
	err = v.save(ctx, f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("save template: %w", err)
	}
	return nil
}

func (v *vm) save(ctx context.Context, f *os.File) error {
	if err := v.qmp.Execute(ctx, "stop", nil, nil); err != nil {
		return err
	}
	if err := v.migrate(ctx, "migrate", f); err != nil {
		return err
	}
	return v.await(ctx, v.marks.migrated, "wait for the device state")
}
