//go:build integration

package engines

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestSoftware runs real software of Debian with Docker. make software makes the image's root
// filesystem.
func TestSoftware(t *testing.T) {
	if _, err := os.Stat(filepath.Join(outDir, "software", ".done")); err != nil {
		t.Skip("there is no Debian with the software: make software makes it, and runs this")
	}
	// On a busy machine PostgreSQL's initdb alone takes minutes under emulation.
	defer func(was time.Duration) { caseTimeout = was }(caseTimeout)
	caseTimeout = 10 * time.Minute
	testEngine(t, startSoftware)
}

// startSoftware is Docker with the image debian.
func startSoftware(t *testing.T, runtime string) *engine {
	t.Helper()
	e := docker{name: "software", root: machine}.start(t, runtime)
	e.caseFiles = []string{"software.sh"}
	made := filepath.Join(outDir, "software")
	e.prelude += fmt.Sprintf("software=%s\nruntime=%s\n", made, runtime)
	e.root.shell(t, fmt.Sprintf("set -eu\n%s\ntar -C %s -c . | engine import -c 'CMD sh' -c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' - debian",
		e.prelude, filepath.Join(made, "rootfs")))
	return e
}
