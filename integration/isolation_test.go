//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// choose returns an option for a container that asks for this isolation.
func choose(isolation string) specOption { return withAnnotation("org.huskvm.isolation", isolation) }

// needRunc skips a test if the host has no runc to which a container can be handed over.
func needRunc(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("runc is not installed")
	}
}

func TestIsolationIsNotTheContainersToChoose(t *testing.T) {
	needVM(t)
	needRunc(t)
	t.Parallel()
	e := newEnv(t)
	for name, want := range map[string]string{
		"runc": `org.huskvm.isolation"]: "runc" is refused: each container of this host is a virtual machine`,
		"none": `org.huskvm.isolation"]: "none" is none of vm, runc`,
	} {
		id := e.id()
		if r := e.do("run", "--bundle", e.bundle(choose(name), withArgs("true")), id); r.code == 0 || !strings.Contains(r.stderr, want) {
			t.Errorf("%s: code %d, stderr %q, want %q", name, r.code, r.stderr, want)
		}
		if r := e.do("state", id); r.code == 0 {
			t.Errorf("%s: the container exists: %s", name, r.stdout)
		}
	}
	c := e.createStarted(e.bundle(choose("vm"), withArgs("sleep", "1000")))
	if len(e.vmms()) != 1 {
		t.Error("a container that chose a VM has none")
	}
	c.stop()
}

// TestIsolationByAnnotation: a container that may choose runc, and does, is handled by runc in
// every verb.
func TestIsolationByAnnotation(t *testing.T) {
	needVM(t)
	needRunc(t)
	t.Parallel()
	e := newEnv(t)
	e.withSettings(`isolation = "annotation"`)
	c := e.create(e.bundle(choose("runc"), withArgs("sleep", "1000")))
	if got := c.status(); got != "created" || len(e.vmms()) != 0 {
		t.Fatalf("status %s, %d VMs", got, len(e.vmms()))
	}
	if r := e.do("create", "--bundle", e.bundle(choose("runc")), c.id); r.code == 0 || !strings.Contains(r.stderr, "container with given ID already exists") {
		t.Errorf("the ID is given twice: %d, %s", r.code, r.stderr)
	}
	e.ok("start", c.id)
	pid := e.state(c.id).PID
	if argv, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err != nil || !strings.Contains(string(argv), "sleep") {
		t.Errorf("the container's pid is not its process on the host: %q, %v", argv, err)
	}
	if r := c.exec("sh", "-c", "echo out; exit 3"); r.code != 3 || r.stdout != "out\n" {
		t.Errorf("exec: %d, %q, %q", r.code, r.stdout, r.stderr)
	}
	if out := e.ok("ps", c.id); !strings.Contains(out, "sleep") {
		t.Errorf("ps: %q", out)
	}
	var all []struct {
		ID, Status  string
		Annotations map[string]string
	}
	if err := json.Unmarshal([]byte(e.ok("list", "--format", "json")), &all); err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 || all[0].ID != c.id || all[0].Status != "running" || all[0].Annotations["org.huskvm.isolation"] != "runc" {
		t.Errorf("list: %+v", all)
	}
	e.ok("pause", c.id)
	if got := c.status(); got != "paused" {
		t.Errorf("status after pause: %s", got)
	}
	e.ok("resume", c.id)
	e.ok("kill", c.id, "KILL")
	e.ok("delete", "--force", c.id)
	if out := e.ok("list", "--quiet"); out != "" {
		t.Errorf("list after delete: %q", out)
	}
	if r := e.do("state", c.id); r.code == 0 || !strings.Contains(r.stderr, "container does not exist") {
		t.Errorf("state after delete: %d, %s", r.code, r.stderr)
	}
	if _, err := os.Stat(filepath.Join(e.root, c.id)); !os.IsNotExist(err) {
		t.Errorf("the record is left: %v", err)
	}
}

// TestIsolationRun: the same in the foreground, and if the other runtime refuses.
func TestIsolationRun(t *testing.T) {
	needVM(t)
	needRunc(t)
	t.Parallel()
	e := newEnv(t)
	e.withSettings(`isolation = "annotation"`)
	id := e.id()
	if r := e.do("run", "--bundle", e.bundle(choose("runc"), withScript("echo out; exit 5")), id); r.code != 5 || r.stdout != "out\n" {
		t.Errorf("run: %d, %q, %q", r.code, r.stdout, r.stderr)
	}
	if r := e.do("run", "--bundle", e.bundle(choose("runc"), withArgs("/no/such/program")), id); r.code == 0 || !strings.Contains(r.stderr, "no such file") {
		t.Errorf("run of nothing: %d, %q", r.code, r.stderr)
	}
	if out := e.ok("list", "--quiet"); out != "" {
		t.Errorf("list: %q", out)
	}
	// The id may be used for a VM again.
	if r := e.do("run", "--bundle", e.bundle(withScript("exit 6")), id); r.code != 6 {
		t.Errorf("run in a VM: %d, %q", r.code, r.stderr)
	}
}
