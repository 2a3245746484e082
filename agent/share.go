package main

import (
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/protocol"
)

// share is the mounted filesystem that the vmm exports.
type share struct {
	tag      string
	guestDir string
	// dir is its open root directory, for syncfs. It is not an os.File, which would be
	// registered with the poller.
	dir int
}

// mountShare mounts the share. It is mounted once; later requests must name the same one. With
// a nil share the container's files are the guest's own.
func (a *agent) mountShare(s *protocol.Share) error {
	if s == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.share != nil {
		if a.share.tag != s.Tag || a.share.guestDir != s.GuestDir {
			return fmt.Errorf("mount share %q on %s: %q is mounted on %s already", s.Tag, s.GuestDir, a.share.tag, a.share.guestDir)
		}
		return nil
	}
	if !path.IsAbs(s.GuestDir) {
		return fmt.Errorf("mount share %q: %q is not an absolute path", s.Tag, s.GuestDir)
	}
	if err := os.MkdirAll(s.GuestDir, 0o755); err != nil {
		return fmt.Errorf("mount share %q: %w", s.Tag, err)
	}
	if err := unix.Mount(s.Tag, s.GuestDir, s.Type, 0, s.Options); err != nil {
		return fmt.Errorf("mount share %q, type %s, options %q, on %s: %w", s.Tag, s.Type, s.Options, s.GuestDir, err)
	}
	dir, err := unix.Open(s.GuestDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return errors.Join(fmt.Errorf("open share %q: %w", s.Tag, err), unix.Unmount(s.GuestDir, unix.MNT_DETACH))
	}
	a.share = &share{tag: s.Tag, guestDir: s.GuestDir, dir: dir}
	return nil
}

// syncShare writes cached data of the share to the host, so that a reader on the host sees
// every byte.
func (a *agent) syncShare() error {
	a.mu.Lock()
	s := a.share
	a.mu.Unlock()
	if s == nil {
		return nil
	}
	if err := unix.Syncfs(s.dir); err != nil {
		return fmt.Errorf("flush share %q: %w", s.tag, err)
	}
	return nil
}
