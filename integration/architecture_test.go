package integration

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/huskvm/husk"

// in says whether a package of this module is dir or below it.
func in(pkg, dir string) bool {
	return pkg == module+"/"+dir || strings.HasPrefix(pkg, module+"/"+dir+"/")
}

func inAny(pkg string, dirs ...string) bool {
	for _, dir := range dirs {
		if in(pkg, dir) {
			return true
		}
	}
	return false
}

// shared is what both sides of the channel may import: the channel, and how to fork.
func shared(pkg string) bool { return inAny(pkg, "agent/protocol", "nsfork", "nftables") }

// guestOnly is what runs inside the guest and never on the host.
func guestOnly(pkg string) bool {
	return inAny(pkg, "agent", "libcontainer") && !inAny(pkg, "agent/protocol", "agent/client")
}

// hostOnly is what runs on the host and never in the guest. The cli is the
// module's root package.
func hostOnly(pkg string) bool {
	return pkg == module || inAny(pkg, "supervisor", "install", "specconv", "state", "config", "network", "cgroup", "hypervisor", "guest", "template", "timings", "check", "distro", "flock", "hooks", "report", "agent/client")
}

// forbidden returns why a package may not depend on another, or "".
func forbidden(from, to string) string {
	switch {
	case hostOnly(from) && guestOnly(to):
		return "host code never imports guest code"
	case guestOnly(from) && hostOnly(to):
		return "guest code never imports host code"
	case shared(from) && (hostOnly(to) || guestOnly(to)):
		return "what both sides share imports neither"
	case in(from, "libcontainer") && inAny(to, "agent", "hypervisor"):
		return "libcontainer never learns what a VM is"
	case in(from, "hypervisor") && inAny(to, "supervisor", "install", "specconv", "state", "config", "network", "cgroup", "guest", "agent"):
		return "hypervisor never learns what a container is"
	case in(from, "hypervisor") && strings.HasPrefix(to, "github.com/opencontainers/"):
		return "hypervisor never learns what a container is"
	case in(to, "libcontainer") && !in(from, "libcontainer") && !in(from, "agent"):
		return "only the agent uses libcontainer"
	case in(from, "specconv") && inAny(to, "supervisor", "state", "network", "cgroup", "hypervisor", "agent/client"):
		return "specconv is pure: it knows the spec and its plan"
	}
	return ""
}

// listed is the part of `go list -json` that is needed.
type listed struct {
	ImportPath string
	Deps       []string
}

func list(t *testing.T) []listed {
	t.Helper()
	// Test files may import anything; -deps without -test leaves them out.
	out, err := exec.Command("go", "list", "-e", "-json=ImportPath,Deps", module+"/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []listed
	decoder := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p listed
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// TestArrows holds the arrows of docs/architecture.md, directly or through
// others: who may know what.
func TestArrows(t *testing.T) {
	packages := list(t)
	var host, guest int
	for _, p := range packages {
		if hostOnly(p.ImportPath) {
			host++
		}
		if guestOnly(p.ImportPath) {
			guest++
		}
		for _, dep := range p.Deps {
			if why := forbidden(p.ImportPath, dep); why != "" {
				t.Errorf("%s depends on %s: %s", short(p.ImportPath), short(dep), why)
			}
		}
	}
	if host < 5 || guest < 2 {
		t.Errorf("only %d host and %d guest packages seen: the rooms have moved and this test no longer looks at them", host, guest)
	}
}

func short(pkg string) string { return strings.TrimPrefix(pkg, module+"/") }

// The rules themselves: each must still be able to fail.
func TestArrowRules(t *testing.T) {
	for _, c := range []struct {
		from, to string
		bad      bool
	}{
		{"supervisor", "agent/client", false},
		{"supervisor", "agent/protocol", false},
		{"supervisor", "agent", true},
		{"supervisor", "libcontainer", true},
		{"agent", "libcontainer", false},
		{"agent", "agent/protocol", false},
		{"agent", "specconv", true},
		{"agent", "agent/client", true},
		{"libcontainer", "agent/protocol", true},
		{"libcontainer", "hypervisor", true},
		{"hypervisor/qemu", "specconv", true},
		{"hypervisor/qemu", "agent/protocol", true},
		{"hypervisor", "hypervisor/qemu", false},
		{"agent/protocol", "libcontainer", true},
		{"agent/client", "agent/protocol", false},
		{"agent/client", "libcontainer", true},
		{"specconv", "config", false},
		{"specconv", "supervisor", true},
	} {
		if got := forbidden(module+"/"+c.from, module+"/"+c.to) != ""; got != c.bad {
			t.Errorf("%s -> %s: forbidden is %v, want %v", c.from, c.to, got, c.bad)
		}
	}
}
