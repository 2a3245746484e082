package main

import (
	"context"
	"time"

	"github.com/huskvm/husk/host/cgroup"
	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor"
	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/hypervisor/qemu"
)

// vmmMemory is what a vmm with its supervisor and exec processes may hold beside
// the guest's RAM, in bytes: QEMU's heap and buffers for files (up to 64 MiB), the
// page tables of the RAM, and the Go processes, of which there is one for each
// process that is exec'd at a time.
const vmmMemory = 512 << 20

// roomOf is what the host's limits leave to the machine (ADR 15).
func roomOf(m *supervisor.Machine) cgroup.Room {
	room := cgroup.Room{RAM: int64(m.MemoryMiB) << 20, Memory: vmmMemory}
	if m.Accel == hypervisor.TCG {
		room.Memory += qemu.TranslationMiB << 20
	}
	return room
}

// planLimits notes in the group what limit will set, before it is saved.
func (n *creation) planLimits() {
	g, r := n.container.Cgroup, n.plan.Shadow.Resources
	g.Room = roomOf(&n.boot.Machine)
	g.Limits = g.Plan(cgroup.Initial(r), true).Limits
	if r != nil && r.Memory != nil {
		g.Apart()
	}
}

// limit sets the container's limits on the host. Only now, when the machine has
// booted: a quota would make that take long, and a limit of memory fail.
func (n *creation) limit() error {
	const created = true
	g := n.container.Cgroup
	change := g.Plan(cgroup.Initial(n.plan.Shadow.Resources), created)
	if err := change.Apply(); err != nil {
		return err
	}
	n.plan.Warnings = append(n.plan.Warnings, change.Dropped...)
	return g.Show(n.process().Pid)
}

// limitsTimeout bounds the wait for another husk call that changes the same limits.
const limitsTimeout = 10 * time.Second

// makeRoom is called before a process of a container that is only created runs.
func makeRoom(ctx context.Context, dir *state.Dir, container *state.Container) error {
	if container.Saved != state.Created || container.Cgroup == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, limitsTimeout)
	defer cancel()
	if err := dir.Lock(ctx); err != nil {
		return err
	}
	defer dir.Unlock()
	return container.Cgroup.MakeRoom(ctx)
}
