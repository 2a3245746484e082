package namespaces

import (
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestFile(t *testing.T) {
	all := []specs.LinuxNamespaceType{
		specs.PIDNamespace, specs.NetworkNamespace, specs.MountNamespace, specs.IPCNamespace,
		specs.UTSNamespace, specs.CgroupNamespace, specs.TimeNamespace, specs.UserNamespace,
	}
	seen := 0
	for _, ns := range all {
		if _, err := os.Readlink(filepath.Join("/proc/self/ns", File(ns))); err != nil {
			t.Errorf("%s: %v", ns, err)
		}
		if Flag(ns) == 0 || seen&Flag(ns) != 0 {
			t.Errorf("%s: flag %#x", ns, Flag(ns))
		}
		seen |= Flag(ns)
	}
	if Flag("nosuch") != 0 || File("nosuch") != "" {
		t.Error("an unknown type has a name")
	}
}
