package libcontainer

import (
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// keptNamespaces keeps the namespaces of a container open after its last process has exited.
// Otherwise the kernel tears them down at that exit, before it tells the process's parent, and
// the exit would be reported later. Where the guest ends with its container that work is for
// nothing.
type keptNamespaces struct {
	others []*os.File
	mounts *os.File // nil: not kept open
}

func keepNamespaces(pid int) (*keptNamespaces, error) {
	k := &keptNamespaces{}
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

// close closes all of them; k may be nil.
func (k *keptNamespaces) close() {
	if k == nil {
		return
	}
	for _, f := range k.others {
		_ = f.Close()
	}
	k.others = nil
	k.closeMounts()
}

// closeMounts lets the mounts be unmounted when the container's last process exits.
func (k *keptNamespaces) closeMounts() {
	_ = k.mounts.Close() // also of nil
	k.mounts = nil
}

// lossless are the types of filesystems that write nothing to a disk when they are unmounted.
// What a bind shows was mounted by the caller, who unmounts it.
var lossless = []string{"", "none", "bind", "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"}

// mayHoldFiles says whether the container may have mounted a filesystem that writes its cached
// data only when it is unmounted: its config has such a mount, or its capabilities allow one.
func (p *plan) mayHoldFiles() bool {
	if p.init.Process.Caps.Bounding&(1<<unix.CAP_SYS_ADMIN) != 0 {
		return true
	}
	return slices.ContainsFunc(p.init.Mounts, func(m mountConfig) bool {
		return m.Flags&unix.MS_BIND == 0 && !slices.Contains(lossless, m.Type)
	})
}
