package qemu

import (
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/hypervisor"
)

// startFiles opens files for a vmm that is not root while it starts: those that only root may
// open.
type startFiles struct {
	paths map[string]bool
	// over is set before the guest runs. After that nothing is opened for the vmm.
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

// watched returns the calls to answer: those that name a file by a path. Calls for files of the
// guest name it by a directory's descriptor.
func (s *startFiles) watched() watch { return watch{"openat": {{{0, allBits, atCWD}}}} }

// handle answers a call if it is one for such a file. It returns false if it has not answered.
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
	// The file is opened for each call, because two readers of one descriptor would share its
	// position.
	f, err := os.OpenFile(path, flags, 0) // path is the configuration's, not the vmm's
	if err != nil {
		return false // then the vmm's own call fails in the same way
	}
	defer f.Close()
	return calls.give(n, f, uint32(n.args[2]&unix.O_CLOEXEC)) == nil
}
