package cgroup

import (
	"math"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Room is what a virtual machine needs in addition to what its container may use. A limit on
// the host counts both, so it has to be higher by this room. Otherwise it would end or stop a
// machine whose container keeps its limit (ADR 15).
type Room struct {
	// RAM is the size of the guest's RAM in bytes. The guest does not give freed memory back,
	// so in time the machine uses all of its RAM, whatever the container's limit is.
	RAM int64 `json:"ram,omitempty"`
	// Memory is what the vmm, the supervisor and the exec processes need in addition, in bytes.
	Memory int64 `json:"memory,omitempty"`

	created     bool // the limits are for a container that is not started
	inBootGroup bool // the machine's memory is still counted in the boot group
}

const (
	unlimited = -1
	// vmTasks is the number of threads that the vmm (vCPUs, and up to 64 for files) and the
	// supervisor may have. execTasks is the number of threads of one exec process. There may be
	// as many exec processes as the container may have processes.
	vmTasks   = 512
	execTasks = 16
	// defaultPids is the limit of processes that the host's group gets where config.json has
	// none, not even -1. With the room for the machine that is 4096 tasks. Without it, a vmm
	// that its guest has taken over could make threads until the host has no process number
	// left. The container's own processes are in the guest and are not counted here, but each
	// exec'd process has an exec process on the host.
	defaultPids = (4096 - vmTasks) / execTasks
	// supervisorMemory is what the supervisor alone may need, in bytes.
	supervisorMemory = 32 << 20
	// smallestShare: a CPU quota leaves the machine at least one part in this many of a CPU.
	// The guest's kernel and agent need a little whatever the container does, or calls to the
	// agent would not end in time. In the guest the container has its own quota.
	smallestShare = 20 // one part in this many
	defaultPeriod = 100000
	// noSwappiness is -1 in an unsigned field, which old versions of Docker send for "not set".
	noSwappiness = math.MaxUint64
)

// convert returns the limits in r as the library takes them, for cgroup v1 and v2. whole is r
// with the limits that are set already, because some values depend on others.
func convert(r, whole *specs.LinuxResources, room Room) *cgroups.Resources {
	out := &cgroups.Resources{}
	convertMemory(out, r.Memory, whole.Memory, room)
	convertCPU(out, r.CPU, whole.CPU)
	if r.Pids != nil && value(r.Pids.Limit) != 0 {
		limit := room.tasks(*r.Pids.Limit)
		out.PidsLimit = &limit
	}
	convertBlockIO(out, r.BlockIO)
	for _, h := range r.HugepageLimits {
		out.HugetlbLimit = append(out.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit})
	}
	if n := r.Network; n != nil {
		if n.ClassID != nil {
			out.NetClsClassid = *n.ClassID
		}
		for _, p := range n.Priorities {
			out.NetPrioIfpriomap = append(out.NetPrioIfpriomap, &cgroups.IfPrioMap{Interface: p.Name, Priority: int64(p.Priority)})
		}
	}
	for name, limit := range r.Rdma {
		if out.Rdma == nil {
			out.Rdma = map[string]cgroups.LinuxRdma{}
		}
		out.Rdma[name] = cgroups.LinuxRdma{HcaHandles: limit.HcaHandles, HcaObjects: limit.HcaObjects}
	}
	for name, v := range r.Unified {
		if out.Unified == nil {
			out.Unified = map[string]string{}
		}
		out.Unified[name] = room.unified(name, v)
	}
	return out
}

func convertMemory(out *cgroups.Resources, r, whole *specs.LinuxMemory, room Room) {
	if r == nil {
		return
	}
	if value(r.Limit) != 0 || value(r.Swap) != 0 {
		limit, swap := value(whole.Limit), value(whole.Swap)
		out.Memory = room.bytes(limit)
		switch {
		case swap > 0 && limit > 0 && swap >= limit && out.Memory > 0:
			out.MemorySwap = out.Memory + (swap - limit)
		case swap == unlimited:
			out.MemorySwap = unlimited
		}
	}
	out.MemoryReservation = value(r.Reservation)
	if r.Swappiness != nil && *r.Swappiness != noSwappiness {
		out.MemorySwappiness = r.Swappiness
	}
	// Without the OOM killer a machine at its limit would stop for ever. While the machine's
	// memory is in the boot group that cannot happen.
	out.OomKillDisable = r.DisableOOMKiller != nil && *r.DisableOOMKiller && room.inBootGroup
}

func convertCPU(out *cgroups.Resources, r, whole *specs.LinuxCPU) {
	if r == nil {
		return
	}
	out.CpuShares = value(r.Shares)
	out.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(out.CpuShares)
	out.CpuBurst = r.Burst
	out.CpuPeriod = value(r.Period)
	if quota := value(whole.Quota); quota != 0 && (value(r.Quota) != 0 || out.CpuPeriod != 0) {
		period := value(whole.Period)
		if period == 0 {
			period = defaultPeriod
		}
		out.CpuQuota = quota
		if quota > 0 {
			out.CpuQuota = max(quota, int64(period)/smallestShare)
		}
		if value(whole.Period) != 0 {
			// In v2 quota and period are in one file.
			out.CpuPeriod = period
		}
	}
	out.CpuRtRuntime = value(r.RealtimeRuntime)
	out.CpuRtPeriod = value(r.RealtimePeriod)
	out.CpusetCpus, out.CpusetMems = r.Cpus, r.Mems
	out.CPUIdle = r.Idle
}

func convertBlockIO(out *cgroups.Resources, b *specs.LinuxBlockIO) {
	if b == nil {
		return
	}
	if b.Weight != nil {
		out.BlkioWeight = *b.Weight
	}
	if b.LeafWeight != nil {
		out.BlkioLeafWeight = *b.LeafWeight
	}
	for _, d := range b.WeightDevice {
		w := cgroups.NewWeightDevice(d.Major, d.Minor, 0, 0)
		if d.Weight != nil {
			w.Weight = *d.Weight
		}
		if d.LeafWeight != nil {
			w.LeafWeight = *d.LeafWeight
		}
		out.BlkioWeightDevice = append(out.BlkioWeightDevice, w)
	}
	for _, t := range []struct {
		to   *[]*cgroups.ThrottleDevice
		from []specs.LinuxThrottleDevice
	}{
		{&out.BlkioThrottleReadBpsDevice, b.ThrottleReadBpsDevice},
		{&out.BlkioThrottleWriteBpsDevice, b.ThrottleWriteBpsDevice},
		{&out.BlkioThrottleReadIOPSDevice, b.ThrottleReadIOPSDevice},
		{&out.BlkioThrottleWriteIOPSDevice, b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range t.from {
			*t.to = append(*t.to, cgroups.NewThrottleDevice(d.Major, d.Minor, d.Rate))
		}
	}
}

// bytes returns a memory limit with room for the machine. 0 and -1 mean no limit and stay as
// they are.
func (r Room) bytes(limit int64) int64 {
	switch {
	case limit <= 0:
		return limit
	case r.inBootGroup:
		return max(limit, supervisorMemory)
	}
	if most := max(limit, r.RAM); most <= math.MaxInt64-r.Memory {
		return most + r.Memory
	}
	return unlimited
}

// tasks returns a limit of processes and threads with room for the machine. Before the start a
// limit that has room enough stays as it was asked for.
func (r Room) tasks(limit int64) int64 {
	if limit <= 0 || r.created && limit >= vmTasks {
		return limit
	}
	if limit > (math.MaxInt32-vmTasks)/execTasks {
		return unlimited
	}
	return limit*execTasks + vmTasks
}

// unified returns the value for one file of cgroup v2.
func (r Room) unified(name, v string) string {
	n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
	if err != nil {
		return v
	}
	switch name {
	case "memory.max", "memory.high":
		n = r.bytes(max(n, 1)) // 0 in these files is a limit
	case "pids.max":
		n = r.tasks(max(n, 1))
	}
	if n == unlimited {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

// heldByGuest says whether the guest's cgroup gets this file's value too.
func heldByGuest(file string) bool {
	controller, _, _ := strings.Cut(file, ".")
	return controller == "memory" || controller == "cpu" || controller == "pids"
}
