package qemu

import (
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/hypervisor"
)

// startFiles opens for a vmm that is not root what only root may open, while it starts.
type startFiles struct {
	paths map[string]bool
	// over is set before the guest runs: from then on nothing is opened for the vmm.
	over atomic.Bool
}

const kvmDevice = "/dev/kvm"

func newStartFiles(cfg hypervisor.Config) *startFiles {
	s := &startFiles{paths: map[string]bool{cfg.Kernel: true, cfg.Initrd: true}}
	if cfg.Accel == hypervisor.KVM {
		s.paths[kvmDevice] = true
	}
	return s
}

// watched: the guest's files are named by a descriptor of a directory.
func (s *startFiles) watched() watch { return watch{"openat": {{{0, allBits, atCWD}}}} }

// handle reports whether it has answered.
func (s *startFiles) handle(calls *listener, t target, n notification) bool {
	if s.over.Load() || n.nr != unix.SYS_OPENAT || int32(n.args[0]) != unix.AT_FDCWD {
		return false
	}
	path, err := t.readString(n.args[1], unix.PathMax)
	if err != nil || !s.paths[path] {
		return false
	}
	flags := os.O_RDONLY
	if path == kvmDevice {
		flags = os.O_RDWR
	}
	// Each time anew: two readers of one descriptor would share its position.
	f, err := os.OpenFile(path, flags, 0) // of the configuration, not of the vmm
	if err != nil {
		return false // as it fails there
	}
	defer f.Close()
	return calls.give(n, f, uint32(n.args[2]&unix.O_CLOEXEC)) == nil
}
