package create

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// hostSysctl is a setting of the whole kernel, which a container cannot change and an
// administrator sets on the host for containers. The guest's kernel gets the host's value if it
// is larger than least, a kernel's default. A larger value does no harm; a smaller one might,
// in a machine of another size.
type hostSysctl struct {
	name  string
	least uint64
	// scaled: kernels compute the default from their RAM. Such a value is rounded up, because
	// templates depend on it and should stay usable after a reboot.
	scaled bool
}

var hostSysctls = []hostSysctl{
	{"fs.aio-max-nr", 65536, false},
	{"fs.epoll.max_user_watches", 0, true},
	{"fs.file-max", 0, true},
	{"fs.inotify.max_queued_events", 16384, false},
	{"fs.inotify.max_user_instances", 128, false},
	{"fs.inotify.max_user_watches", 0, true},
	{"fs.nr_open", 1048576, false},
	{"fs.pipe-max-size", 1048576, false},
	{"fs.pipe-user-pages-soft", 16384, false},
	{"kernel.keys.maxbytes", 20000, false},
	{"kernel.keys.maxkeys", 200, false},
	{"kernel.pid_max", 32768, false},
	{"kernel.threads-max", 0, true},
	{"net.core.optmem_max", 20480, false},
	{"net.core.rmem_max", 212992, false},
	{"net.core.wmem_max", 212992, false},
	{"vm.max_map_count", 65530, false},
}

// scaledStep is the unit to which a scaled value is rounded up.
const scaledStep = 1024

// overcommit is passed on only as 1 (always), which some programs ask for. With 2 (never) a
// guest as small as its container's limit could not work.
const overcommit, overcommitAlways = "vm.overcommit_memory", 1

// sysctlParams returns kernel parameters that give the guest's kernel the host's settings. proc
// is the host's /proc/sys. Settings that the host's kernel lacks are left out, and the guest's
// kernel ignores those that it lacks.
func sysctlParams(proc string) string {
	var params []string
	add := func(name string, value uint64) {
		params = append(params, fmt.Sprintf("sysctl.%s=%d", name, value))
	}
	for _, s := range hostSysctls {
		value, ok := readSysctl(proc, s.name)
		if !ok || value <= s.least {
			continue
		}
		if s.scaled && value%scaledStep != 0 && value < 1<<62 {
			value += scaledStep - value%scaledStep
		}
		add(s.name, value)
	}
	if value, ok := readSysctl(proc, overcommit); ok && value == overcommitAlways {
		add(overcommit, value)
	}
	return strings.Join(params, " ")
}

func readSysctl(proc, name string) (uint64, bool) {
	text, err := os.ReadFile(filepath.Join(proc, strings.ReplaceAll(name, ".", "/")))
	if err != nil {
		return 0, false
	}
	value, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	return value, err == nil
}
