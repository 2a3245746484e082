package specconv

import (
	"math"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestVMMIDs(t *testing.T) {
	ranges := func(maps ...specs.LinuxIDMapping) *IDMaps { return &IDMaps{UID: maps, GID: maps} }
	usual := ranges(specs.LinuxIDMapping{ContainerID: 0, HostID: 100000, Size: 65536})
	one, _ := usual.VMM("one")
	two, _ := usual.VMM("two")
	if again, _ := usual.VMM("one"); one != again || one == two || one < 1<<31 || one == math.MaxUint32 {
		t.Errorf("vmms are %d, %d and again %d", one, two, again)
	}
	uids, _ := usual.VMMText("one")
	if !strings.HasPrefix(uids, "100000 100000 65536\n") || strings.Contains(uids, "\n0 ") {
		t.Errorf("mappings %q", uids)
	}
	high := ranges(specs.LinuxIDMapping{ContainerID: 0, HostID: 1 << 31, Size: 1<<31 - 1})
	if uid, gid := high.VMM("one"); uid != 1<<31-1 || gid != uid {
		t.Errorf("with all high ids mapped the vmm is %d:%d", uid, gid)
	}
	all := ranges(specs.LinuxIDMapping{ContainerID: 0, HostID: 0, Size: math.MaxUint32})
	if uid, gid := all.VMM("one"); uid != 0 || gid != 0 {
		t.Errorf("with all ids mapped the vmm is %d:%d", uid, gid)
	}
}
