package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// v1Controller says which limits one controller of cgroup v1 holds.
type v1Controller struct {
	name string
	// files are the files in which it holds them.
	files []string
	// fields returns the names of those limits in r that only the host can enforce.
	fields func(r *specs.LinuxResources) []string
	// share returns the controller's part of want; nil if there is none.
	share func(want *cgroups.Resources) *cgroups.Resources
}

var v1Controllers = []v1Controller{
	{
		"memory",
		[]string{
			"memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.soft_limit_in_bytes",
			"memory.swappiness", "memory.oom_control", kmemTCP,
		},
		func(r *specs.LinuxResources) []string {
			if r.Memory == nil {
				return nil
			}
			return names(map[string]bool{
				"memory.swappiness":       r.Memory.Swappiness != nil && *r.Memory.Swappiness != noSwappiness,
				"memory.disableOOMKiller": r.Memory.DisableOOMKiller != nil && *r.Memory.DisableOOMKiller,
				"memory.kernelTCP":        value(r.Memory.KernelTCP) > 0,
			})
		},
		func(w *cgroups.Resources) *cgroups.Resources {
			if w.Memory == 0 && w.MemorySwap == 0 && w.MemoryReservation == 0 && w.MemorySwappiness == nil && !w.OomKillDisable {
				return nil
			}
			return &cgroups.Resources{
				Memory: w.Memory, MemorySwap: w.MemorySwap, MemoryReservation: w.MemoryReservation,
				MemorySwappiness: w.MemorySwappiness, OomKillDisable: w.OomKillDisable,
			}
		},
	},
	{
		"cpu",
		[]string{"cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.cfs_burst_us", "cpu.shares", "cpu.idle", "cpu.rt_runtime_us", "cpu.rt_period_us"},
		func(r *specs.LinuxResources) []string {
			if r.CPU == nil {
				return nil
			}
			return names(map[string]bool{
				"cpu.realtimeRuntime": value(r.CPU.RealtimeRuntime) != 0, "cpu.realtimePeriod": value(r.CPU.RealtimePeriod) != 0,
			})
		},
		func(w *cgroups.Resources) *cgroups.Resources {
			if w.CpuShares == 0 && w.CpuQuota == 0 && w.CpuPeriod == 0 && w.CpuBurst == nil && w.CPUIdle == nil && w.CpuRtRuntime == 0 && w.CpuRtPeriod == 0 {
				return nil
			}
			return &cgroups.Resources{
				CpuShares: w.CpuShares, CpuQuota: w.CpuQuota, CpuPeriod: w.CpuPeriod, CpuBurst: w.CpuBurst,
				CPUIdle: w.CPUIdle, CpuRtRuntime: w.CpuRtRuntime, CpuRtPeriod: w.CpuRtPeriod,
			}
		},
	},
	{
		"cpuset",
		[]string{"cpuset.cpus", "cpuset.mems"},
		func(r *specs.LinuxResources) []string {
			if r.CPU == nil {
				return nil
			}
			// The number of CPUs is enforced in the guest.
			return names(map[string]bool{"cpu.mems": r.CPU.Mems != ""})
		},
		func(w *cgroups.Resources) *cgroups.Resources {
			if w.CpusetCpus == "" && w.CpusetMems == "" {
				return nil
			}
			return &cgroups.Resources{CpusetCpus: w.CpusetCpus, CpusetMems: w.CpusetMems}
		},
	},
	{
		"pids",
		[]string{"pids.max"},
		func(*specs.LinuxResources) []string { return nil },
		func(w *cgroups.Resources) *cgroups.Resources {
			if w.PidsLimit == nil {
				return nil
			}
			return &cgroups.Resources{PidsLimit: w.PidsLimit}
		},
	},
	{
		"blkio",
		[]string{
			"blkio.weight", "blkio.bfq.weight", "blkio.weight_device", "blkio.bfq.weight_device",
			"blkio.leaf_weight", "blkio.leaf_weight_device",
			"blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device",
			"blkio.throttle.read_iops_device", "blkio.throttle.write_iops_device",
		},
		func(r *specs.LinuxResources) []string {
			return names(map[string]bool{"blockIO": hasBlockIO(r.BlockIO)})
		},
		func(w *cgroups.Resources) *cgroups.Resources {
			r := &cgroups.Resources{
				BlkioWeight: w.BlkioWeight, BlkioLeafWeight: w.BlkioLeafWeight, BlkioWeightDevice: w.BlkioWeightDevice,
				BlkioThrottleReadBpsDevice: w.BlkioThrottleReadBpsDevice, BlkioThrottleWriteBpsDevice: w.BlkioThrottleWriteBpsDevice,
				BlkioThrottleReadIOPSDevice: w.BlkioThrottleReadIOPSDevice, BlkioThrottleWriteIOPSDevice: w.BlkioThrottleWriteIOPSDevice,
			}
			if r.BlkioWeight == 0 && r.BlkioLeafWeight == 0 && len(r.BlkioWeightDevice)+len(r.BlkioThrottleReadBpsDevice)+
				len(r.BlkioThrottleWriteBpsDevice)+len(r.BlkioThrottleReadIOPSDevice)+len(r.BlkioThrottleWriteIOPSDevice) == 0 {
				return nil
			}
			return r
		},
	},
	{
		"hugetlb",
		nil, // the files depend on page sizes: see hugeFiles
		func(r *specs.LinuxResources) []string {
			return names(map[string]bool{"hugepageLimits": len(r.HugepageLimits) > 0})
		},
		func(w *cgroups.Resources) *cgroups.Resources {
			if len(w.HugetlbLimit) == 0 {
				return nil
			}
			return &cgroups.Resources{HugetlbLimit: w.HugetlbLimit}
		},
	},
	{
		"net_cls",
		[]string{"net_cls.classid"},
		func(r *specs.LinuxResources) []string {
			return names(map[string]bool{"network.classID": r.Network != nil && r.Network.ClassID != nil && *r.Network.ClassID != 0})
		},
		func(w *cgroups.Resources) *cgroups.Resources {
			if w.NetClsClassid == 0 {
				return nil
			}
			return &cgroups.Resources{NetClsClassid: w.NetClsClassid}
		},
	},
	{
		"net_prio",
		[]string{"net_prio.ifpriomap"},
		func(r *specs.LinuxResources) []string {
			return names(map[string]bool{"network.priorities": r.Network != nil && len(r.Network.Priorities) > 0})
		},
		func(w *cgroups.Resources) *cgroups.Resources {
			if len(w.NetPrioIfpriomap) == 0 {
				return nil
			}
			return &cgroups.Resources{NetPrioIfpriomap: w.NetPrioIfpriomap}
		},
	},
	{
		"rdma",
		[]string{"rdma.max"},
		func(r *specs.LinuxResources) []string { return names(map[string]bool{"rdma": len(r.Rdma) > 0}) },
		func(w *cgroups.Resources) *cgroups.Resources {
			if len(w.Rdma) == 0 {
				return nil
			}
			return &cgroups.Resources{Rdma: w.Rdma}
		},
	},
}

// hugeFiles returns the files of the hugetlb controller for these limits.
func hugeFiles(limits []*cgroups.HugepageLimit) []string {
	var files []string
	for _, h := range limits {
		files = append(files, "hugetlb."+h.Pagesize+".limit_in_bytes", "hugetlb."+h.Pagesize+".rsvd.limit_in_bytes")
	}
	return files
}

// names returns the keys that are true, sorted.
func names(set map[string]bool) []string {
	var all []string
	for name, is := range set {
		if is {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all
}

func hasBlockIO(b *specs.LinuxBlockIO) bool {
	return b != nil && (b.Weight != nil && *b.Weight != 0 || b.LeafWeight != nil && *b.LeafWeight != 0 ||
		len(b.WeightDevice)+len(b.ThrottleReadBpsDevice)+len(b.ThrottleWriteBpsDevice)+
			len(b.ThrottleReadIOPSDevice)+len(b.ThrottleWriteIOPSDevice) > 0)
}

// onlyV1 returns the names of those fields in r for which cgroup v2 has nothing.
func onlyV1(r *specs.LinuxResources) []string {
	set := map[string]bool{}
	if m := r.Memory; m != nil {
		set["memory.swappiness"] = m.Swappiness != nil && *m.Swappiness != noSwappiness
		set["memory.disableOOMKiller"] = m.DisableOOMKiller != nil && *m.DisableOOMKiller
		set["memory.kernelTCP"] = value(m.KernelTCP) > 0
	}
	if c := r.CPU; c != nil {
		set["cpu.realtimeRuntime"] = value(c.RealtimeRuntime) != 0
		set["cpu.realtimePeriod"] = value(c.RealtimePeriod) != 0
	}
	if n := r.Network; n != nil {
		set["network.classID"] = n.ClassID != nil && *n.ClassID != 0
		set["network.priorities"] = len(n.Priorities) > 0
	}
	return names(set)
}

// kmemTCP limits the buffers of TCP connections. The library does not support it, and neither
// does runc.
const kmemTCP = "memory.kmem.tcp.limit_in_bytes"

func setTCP(dir string, r *specs.LinuxResources) error {
	if r.Memory == nil || value(r.Memory.KernelTCP) == 0 {
		return nil
	}
	return cgroups.WriteFile(dir, kmemTCP, strconv.FormatInt(*r.Memory.KernelTCP, 10))
}

// v2Files are the files that hold limits in cgroup v2.
var v2Files = []string{
	"memory.max", "memory.swap.max", "memory.low", "cpu.max", "cpu.max.burst", "cpu.weight", "cpu.idle",
	"cpuset.cpus", "cpuset.mems", "pids.max", "io.max", "io.weight", "io.bfq.weight", "rdma.max",
}

// snapshot is the content of some groups' files before a change.
type snapshot []file

type file struct{ dir, name, text string }

// take adds the content of those files that exist.
func (s *snapshot) take(dir string, files []string) {
	for _, name := range files {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
			*s = append(*s, file{dir, name, string(b)})
		}
	}
}

// restore writes back the files that have changed. Files that fail are tried again after the
// others, because some values bound each other, as the limit of memory does that of memory and
// swap.
func (s snapshot) restore() error {
	var errs []error
	for range 2 {
		errs = nil
		for _, f := range s {
			if err := f.restore(); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

func (f file) restore() error {
	now, err := os.ReadFile(filepath.Join(f.dir, f.name))
	if isGone(err) || err == nil && string(now) == f.text {
		return nil
	}
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(f.text), "\n")
	switch {
	case f.name == "memory.oom_control":
		lines = []string{strings.TrimPrefix(lines[0], "oom_kill_disable ")}
	case strings.HasSuffix(f.name, "_device") || f.name == "io.max":
		lines = append(lines, f.removals(string(now))...)
	}
	for _, line := range lines {
		if line == "" && !strings.HasPrefix(f.name, "cpuset.") {
			continue
		}
		if err := cgroups.WriteFile(f.dir, f.name, line); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// removals returns lines for file f that remove the devices without a value in the snapshot.
// now is the file's present content.
func (f file) removals(now string) []string {
	none := " 0"
	if f.name == "io.max" {
		none = " rbps=max wbps=max riops=max wiops=max"
	}
	var lines []string
	for line := range strings.Lines(now) {
		device, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.Contains(device, ":") && !strings.Contains("\n"+f.text, "\n"+device+" ") {
			lines = append(lines, device+none)
		}
	}
	return lines
}
