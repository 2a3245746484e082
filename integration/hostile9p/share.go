//go:build hostile9p

// This file replaces agent/share.go in an agent that the integration tests build (go build
// -overlay): in such a guest the kernel does not mount the share, but the agent attacks the
// server behind it. Everything else in that agent is husk's own. The container's root is in the
// guest's memory and has one program, which passes its arguments to the agent, and the agent
// does with the device what they say.

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/integration/hostile9p/client"
	"github.com/huskvm/husk/protocol"
)

func init() {
	if filepath.Base(os.Args[0]) == client.Program {
		os.Exit(client.Ask(os.Args[1:]))
	}
}

type share struct {
	tag, guestDir string
	dir           int
}

// binds are the names of what the tests bind.
var binds = map[string]bool{"vol": true, "ro": true, "onefile": false}

func (a *agent) mountShare(s *protocol.Share) error {
	if err := os.MkdirAll(s.GuestDir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", s.GuestDir, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount a root: %w", err)
	}
	root := filepath.Join(s.GuestDir, "rootfs")
	for _, dir := range []string{"bin", "proc", "sys", "dev", "tmp", "vol", "ro"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(root, "onefile"), nil, 0o644); err != nil {
		return err
	}
	const most = 32 // mounts of a test's container
	for i := range most {
		for name, isDir := range binds {
			at := filepath.Join(s.GuestDir, "mounts", strconv.Itoa(i), name)
			if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
				return err
			}
			if isDir {
				if err := os.Mkdir(at, 0o755); err != nil {
					return err
				}
			} else if err := os.WriteFile(at, nil, 0o644); err != nil {
				return err
			}
		}
	}
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "bin", client.Program), program, 0o755); err != nil {
		return err
	}
	a.share = &share{tag: s.Tag, guestDir: s.GuestDir}
	return client.Serve(filepath.Join(root, client.Socket), s.Tag)
}

func (a *agent) syncShare() error { return nil }
