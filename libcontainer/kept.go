package libcontainer

import (
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// kept holds namespaces open past the container's end. The kernel takes a
// namespace apart when its last process exits, before it tells that process's
// parent: the exit of a container would be reported that much later, and where the
// guest ends with its container all that work is for nothing.
type kept struct {
	others []*os.File
	mounts *os.File // nil: not kept
}

func keepNamespaces(pid int) (*kept, error) {
	k := &kept{}
	for _, name := range []string{"ns/net", "ns/ipc"} {
		f, err := os.Open(procFile(pid, name))
		if err != nil {
			k.close()
			return nil, err
		}
		k.others = append(k.others, f)
	}
	var err error
	if k.mounts, err = os.Open(procFile(pid, "ns/mnt")); err != nil {
		k.close()
		return nil, err
	}
	return k, nil
}

// close lets go of all of them; k may be nil.
func (k *kept) close() {
	if k == nil {
		return
	}
	for _, f := range k.others {
		_ = f.Close()
	}
	k.others = nil
	k.closeMounts()
}

// closeMounts has the mounts end with the container's last process.
func (k *kept) closeMounts() {
	_ = k.mounts.Close() // also of nil
	k.mounts = nil
}

// lossless are the types of filesystems that have nothing to write when they are
// unmounted; binds are of what the caller mounted and looks after.
var lossless = []string{"", "none", "bind", "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"}

// mayHoldFiles says whether the container may have a filesystem mounted that
// writes to a disk what it has cached only when it is unmounted: one its config
// mounts, or one it may mount itself.
func (p *plan) mayHoldFiles() bool {
	if p.init.Process.Caps.Bounding&(1<<unix.CAP_SYS_ADMIN) != 0 {
		return true
	}
	return slices.ContainsFunc(p.init.Mounts, func(m mountConfig) bool {
		return m.Flags&unix.MS_BIND == 0 && !slices.Contains(lossless, m.Type)
	})
}
