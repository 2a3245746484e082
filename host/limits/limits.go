// Package limits sets a container's limits on the host, and leaves room in them for the
// virtual machine (ADR 15).
package limits

import (
	"context"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/cgroup"
	"github.com/huskvm/husk/host/machine"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/hypervisor/qemu"
)

// vmmMemory is what a vmm with its supervisor and exec processes may hold beside
// the guest's RAM, in bytes: QEMU's heap and buffers for files (up to 64 MiB), the
// page tables of the RAM, and the Go processes, of which there is one for each
// process that is exec'd at a time.
const vmmMemory = 512 << 20

// roomOf is what the host's limits leave to the machine (ADR 15).
func roomOf(m *machine.Config) cgroup.Room {
	room := cgroup.Room{RAM: int64(m.MemoryMiB) << 20, Memory: vmmMemory}
	if m.Accel == hypervisor.TCG {
		room.Memory += qemu.TranslationMiB << 20
	}
	return room
}

// Note notes in a group what Set will set, before the group is saved.
func Note(g *cgroup.Group, r *specs.LinuxResources, m *machine.Config) {
	g.Room = roomOf(m)
	g.Limits = g.Change(cgroup.Initial(r), true).Limits
	if r != nil && r.Memory != nil {
		g.Apart()
	}
}

// Set sets a container's limits on the host. pid is the process that the container is
// known by. Only now, when the machine has booted: a quota would make that take long, and
// a limit of memory fail. It returns the limits that the host does not have.
func Set(g *cgroup.Group, r *specs.LinuxResources, pid int) (dropped []specconv.Dropped, err error) {
	const created = true
	change := g.Change(cgroup.Initial(r), created)
	if err := change.Apply(); err != nil {
		return nil, err
	}
	return change.Dropped, g.Show(pid)
}

// lockTimeout bounds the wait for another husk call that changes the same limits.
const lockTimeout = 10 * time.Second

// MakeRoom is called before a process of a container that is only created runs.
func MakeRoom(ctx context.Context, dir *state.Dir, container *state.Container) error {
	if container.Saved != state.Created || container.Cgroup == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	if err := dir.Lock(ctx); err != nil {
		return err
	}
	defer dir.Unlock()
	return container.Cgroup.MakeRoom(ctx)
}
