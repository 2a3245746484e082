//go:build integration

package integration

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"
)

var rssLine = regexp.MustCompile(`(?m)^Rss:\s+(\d+) kB`)

// rssMiB returns how much of the host's memory a process uses.
func rssMiB(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := rssLine.FindSubmatch(text)
	if m == nil {
		t.Fatalf("no Rss in %s", text)
	}
	kib, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kib / 1024
}

// TestFreedMemoryGoesBack: memory that a container has freed goes back to the host, of a VM that has started from a
// template like any other, and the template stays as it is: for the clones that live and for
// those to come.
func TestFreedMemoryGoesBack(t *testing.T) {
	needVM(t)
	t.Parallel()
	for _, c := range []struct {
		name     string
		template bool
		settings string
	}{
		{name: "clone", template: true},
		{name: "boot", settings: `templates = "off"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			if c.settings != "" {
				e.withSettings(c.settings)
			}
			// Small, since the test reads all of the template.
			options := []specOption{withArgs("sleep", "1000"), withAnnotation("org.huskvm.memory_mib", "512")}
			box := e.createStarted(e.bundle(options...))
			vmm := e.vmms()[0]
			ram := argOf(t, vmm, "mem-path")
			if (ram != "") != c.template {
				t.Fatalf("the RAM's file is %q", ram)
			}
			digest := digestOf(t, ram)
			e.touchAndFree(box, vmm)
			if digestOf(t, ram) != digest {
				t.Error("the template has changed")
			}
			if r := box.exec("true"); r.code != 0 {
				t.Errorf("exec afterwards: %d, %s", r.code, r.stderr)
			}
			e.ok("run", "--bundle", e.bundle(append(options, withArgs("true"))...), e.id())
			box.stop()
		})
	}
}

// touchAndFree has a process touch memory and end, and waits until the host has it back.
func (e *env) touchAndFree(c *container, vmm int) {
	t := e.t
	t.Helper()
	const mib = 250
	before := rssMiB(t, vmm)
	p := e.start(call{}, "exec", c.id, "sh", "-c", fmt.Sprintf("testprog memory %d && read x", mib))
	p.stdout.expect(t, fmt.Sprintf("touched %d\n", mib))
	peak := rssMiB(t, vmm)
	if peak < before+mib {
		t.Fatalf("%d MiB of the host before, %d MiB with %d MiB touched", before, peak, mib)
	}
	p.wait() // its stdin is at its end
	// The kernel reports its free pages every two seconds.
	eventually(t, fmt.Sprintf("%d MiB of the host before, %d MiB at the peak, back to the first", before, peak), time.Minute,
		func() bool { return rssMiB(t, vmm) <= before+mib/3 })
	t.Logf("%d MiB of the host before, %d MiB at the peak, %d MiB after", before, peak, rssMiB(t, vmm))
}

// digestOf reads a whole file; that of no file is "".
func digestOf(t *testing.T, path string) string {
	t.Helper()
	if path == "" {
		return ""
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return string(h.Sum(nil))
}
