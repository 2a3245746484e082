package create

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSysctlParams(t *testing.T) {
	proc := t.TempDir()
	set := func(name, value string) {
		t.Helper()
		file := filepath.Join(proc, strings.ReplaceAll(name, ".", "/"))
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := sysctlParams(proc); got != "" {
		t.Errorf("of a kernel without any: %q", got)
	}
	set("vm.max_map_count", "262144")
	set("kernel.pid_max", "32768")
	set("kernel.threads-max", "192730")
	set("fs.file-max", "9223372036854775807")
	set("fs.aio-max-nr", "1 ro sysctl.x=y")
	set("vm.overcommit_memory", "2")
	if got, want := sysctlParams(proc), "sysctl.fs.file-max=9223372036854775807 sysctl.kernel.threads-max=193536 sysctl.vm.max_map_count=262144"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	set("vm.overcommit_memory", "1")
	if got := sysctlParams(proc); !strings.HasSuffix(got, " sysctl.vm.overcommit_memory=1") {
		t.Errorf("got %q", got)
	}
}

// TestSysctlParamsFit: a kernel cuts a command line that is too long, and would lose what the
// machine needs.
func TestSysctlParamsFit(t *testing.T) {
	const room = 2048 - 700 // for the parameters of husk and of the settings file
	longest := 0
	for _, s := range hostSysctls {
		longest += len(" sysctl.") + len(s.name) + len("=9223372036854775807")
	}
	if longest > room {
		t.Errorf("%d bytes are more than %d", longest, room)
	}
}
