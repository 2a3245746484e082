package libcontainer

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestMayHoldFiles(t *testing.T) {
	const plain = 1<<unix.CAP_CHOWN | 1<<unix.CAP_MKNOD
	mount := func(kind string, flags uintptr) mountConfig {
		return mountConfig{Destination: "/x", Type: kind, mountOptions: mountOptions{Flags: flags}}
	}
	for name, c := range map[string]struct {
		bounding uint64
		mounts   []mountConfig
		want     bool
	}{
		"nothing":    {plain, nil, false},
		"as Docker":  {plain, []mountConfig{mount("proc", 0), mount("tmpfs", 0), mount("bind", unix.MS_BIND), mount("mqueue", 0)}, false},
		"a disk":     {plain, []mountConfig{mount("proc", 0), mount("ext4", 0)}, true},
		"bound ext4": {plain, []mountConfig{mount("ext4", unix.MS_BIND|unix.MS_REC)}, false},
		"may mount":  {plain | 1<<unix.CAP_SYS_ADMIN, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			p := &plan{init: initConfig{Mounts: c.mounts}}
			p.init.Process.Caps.Bounding = c.bounding
			if got := p.mayHoldFiles(); got != c.want {
				t.Errorf("%s: %v, want %v", name, got, c.want)
			}
		})
	}
}
