package integration

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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

// shared is what both sides may import: the channel between them, how to fork, and what
// both know of Linux.
func shared(pkg string) bool {
	return inAny(pkg, "protocol", "nsfork", "linux") && !in(pkg, "protocol/client")
}

// guestOnly is what runs inside the guest and never on the host.
func guestOnly(pkg string) bool { return inAny(pkg, "agent", "libcontainer") }

// hostOnly is what runs on the host and never in the guest. The cli is the module's root
// package.
func hostOnly(pkg string) bool {
	return pkg == module || inAny(pkg, "host", "hypervisor", "protocol/client")
}

// forbidden returns why a package may not depend on another, or "".
func forbidden(from, to string) string {
	switch {
	case to == module:
		return "nobody imports the cli"
	case hostOnly(from) && guestOnly(to):
		return "host code never imports guest code"
	case guestOnly(from) && hostOnly(to):
		return "guest code never imports host code"
	case shared(from) && (hostOnly(to) || guestOnly(to)):
		return "what both sides share imports neither"
	case in(from, "libcontainer") && inAny(to, "agent", "protocol"):
		return "libcontainer never learns what a VM is"
	case from != module && strings.HasPrefix(to, "github.com/urfave/cli"):
		return "the command line is parsed at the top: whoever is below gets options"
	case in(from, "hypervisor") && inAny(to, containerRooms...):
		return "hypervisor never learns what a container is"
	case in(from, "hypervisor") && strings.HasPrefix(to, "github.com/opencontainers/"):
		return "hypervisor never learns what a container is"
	case in(from, "host/specconv") && (in(to, "host") && !inAny(to, "host/specconv", "host/config") || inAny(to, "hypervisor", "protocol/client")):
		return "specconv is pure: it knows the spec and its plan"
	case in(from, "host/machine") && inAny(to, "host/supervisor", "host/mounts", "host/state", "host/cgroup", "host/hooks", "host/failures"):
		return "a machine serves containers, and never learns of the supervisor of one"
	case in(from, "host/mounts") && (in(to, "host") && !inAny(to, "host/mounts", "host/specconv", "host/config") || inAny(to, "hypervisor", "protocol/client")):
		return "mounts know a container's plan, and neither virtual machine nor supervisor"
	}
	return ""
}

// containerRooms are the packages of the host that know what a container is.
var containerRooms = []string{
	"host/supervisor", "host/machine", "host/mounts", "host/install", "host/specconv", "host/state", "host/config", "host/network",
	"host/cgroup", "host/bootimage", "host/check", "host/report", "host/template", "host/create", "host/caller",
	"host/exec", "host/lifecycle", "host/limits", "protocol",
}

// listed holds the fields of `go list -json` that are needed.
type listed struct {
	ImportPath string
	Deps       []string
}

func list(t *testing.T) []listed {
	t.Helper()
	// Test files may import anything. -deps without -test leaves them out.
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

// TestArrows: no package depends on another, directly or through others, against the rules of
// docs/architecture.md.
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

// TestArrowRules: each rule can fail.
func TestArrowRules(t *testing.T) {
	for _, c := range []struct {
		from, to string
		bad      bool
	}{
		{"host/supervisor", "protocol/client", false},
		{"host/supervisor", "protocol", false},
		{"host/supervisor", "agent", true},
		{"host/supervisor", "libcontainer", true},
		{"host/supervisor", "linux/nftables", false},
		{"agent", "libcontainer", false},
		{"agent", "protocol", false},
		{"agent", "linux/nftables", false},
		{"agent", "host/specconv", true},
		{"agent", "protocol/client", true},
		{"libcontainer", "protocol", true},
		{"libcontainer", "hypervisor", true},
		{"hypervisor/qemu", "host/specconv", true},
		{"hypervisor/qemu", "protocol", true},
		{"hypervisor/qemu", "host/distro", false},
		{"hypervisor", "hypervisor/qemu", false},
		{"protocol", "libcontainer", true},
		{"protocol/client", "protocol", false},
		{"protocol/client", "libcontainer", true},
		{"linux/nftables", "host/network", true},
		{"linux/sysctl", "libcontainer", true},
		{"libcontainer", "linux/namespaces", false},
		{"host/specconv", "host/config", false},
		{"host/specconv", "host/supervisor", true},
		{"host/specconv", "hypervisor", true},
		{"host/mounts", "host/specconv", false},
		{"host/mounts", "host/supervisor", true},
		{"host/mounts", "hypervisor", true},
		{"host/mounts", "protocol/client", true},
		{"host/supervisor", "host/mounts", false},
		{"host/machine", "host/supervisor", true},
		{"host/machine", "host/supervisor/stdio", true},
		{"host/machine", "host/state", true},
		{"host/machine", "host/cgroup", true},
		{"host/machine", "host/mounts", true},
		{"host/machine", "host/network", false},
		{"host/machine", "hypervisor", false},
		{"host/machine", "protocol/client", false},
		{"host/supervisor", "host/machine", false},
		{"hypervisor/qemu", "host/machine", true},
	} {
		if got := forbidden(module+"/"+c.from, module+"/"+c.to) != ""; got != c.bad {
			t.Errorf("%s -> %s: forbidden is %v, want %v", c.from, c.to, got, c.bad)
		}
	}
	const cli = "github.com/urfave/cli/v2"
	if forbidden(module, cli) != "" || forbidden(module+"/host/create", cli) == "" {
		t.Error("not only the verbs may read the command line")
	}
}

// TestTopHoldsVerbs: each file at the top is main.go or holds the verb that it is named after.
func TestTopHoldsVerbs(t *testing.T) {
	files, err := filepath.Glob("../*.go")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, path := range files {
		name := filepath.Base(path)
		// pages.go is the main of another build, which writes the man page.
		if strings.HasSuffix(name, "_test.go") || name == "main.go" || name == "pages.go" {
			continue
		}
		verb := strings.ReplaceAll(strings.TrimSuffix(name, ".go"), "_", "-")
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !regexp.MustCompile(`Name:\s+"` + verb + `"`).Match(text) {
			t.Errorf("%s holds no verb %s: what is below the verbs lives in host/", name, verb)
		}
	}
}
