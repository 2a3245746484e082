//go:build integration

package integration

import (
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNetworkOfAnotherContainer: --network container:X of a container that another runtime has.
// husk refuses, naming the process, and the other container keeps its network.
func TestNetworkOfAnotherContainer(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	other := exec.Command("sleep", "1000")
	other.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = other.Process.Kill()
		_ = other.Wait()
	}()
	net := fmt.Sprintf("/proc/%d/net/dev", other.Process.Pid)
	before := readFile(t, net)
	path := fmt.Sprintf("/proc/%d/ns/net", other.Process.Pid)
	id := e.id()
	r := e.do("create", "--bundle", e.bundle(withNetNS(path)), id).is(1)
	for _, want := range []string{fmt.Sprintf("process %d (%q) of another container", other.Process.Pid, "sleep"), "not supported yet"} {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("stderr %q does not say %q", r.stderr, want)
		}
	}
	if after := readFile(t, net); after != before {
		t.Errorf("the other container's interfaces were\n%sand are\n%s", before, after)
	}
	e.do("state", id).fails(1, missing)
}
