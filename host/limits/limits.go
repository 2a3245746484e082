// Package limits sets a container's limits on the host, with room in them for the virtual
// machine (ADR 15).
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

// vmmMemory is what a vmm with its supervisor and exec processes may use in addition to the
// guest's RAM, in bytes: QEMU's heap and its buffers for files (up to 64 MiB), the page tables
// of the RAM, and Go processes, one for each exec'd process.
const vmmMemory = 512 << 20

// roomOf returns the room for the machine in the host's limits (ADR 15).
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
		g.PlanBootGroup()
	}
}

// Set sets a container's limits on the host. pid is the container's pid. It is called when the
// machine has booted: with a quota booting would take long, and with a memory limit it would
// fail. It returns the limits that the host cannot enforce.
func Set(g *cgroup.Group, r *specs.LinuxResources, pid int) (dropped []specconv.Dropped, err error) {
	const created = true
	change := g.Change(cgroup.Initial(r), created)
	if err := change.Apply(); err != nil {
		return nil, err
	}
	return change.Dropped, g.LeaveBootGroup(pid)
}

// lockTimeout bounds the wait for another husk call that changes the same limits.
const lockTimeout = 10 * time.Second

// MakeRoom is called for a created container before its process runs.
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
