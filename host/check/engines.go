package check

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/huskvm/husk/host/install"
)

// programDirs are the directories in which engines are installed.
var programDirs = []string{"/usr/bin", "/usr/local/bin", "/usr/sbin", "/usr/local/sbin", "/run/current-system/sw/bin"}

// engines says which engines on this host have husk as a runtime. None needs it: podman and ctr
// also accept husk's path.
func engines(all []*install.Engine, dirs []string) Check {
	c := Check{Name: "engines", Status: OK}
	var found []string
	for _, e := range all {
		installed := slices.ContainsFunc(dirs, func(dir string) bool {
			info, err := os.Stat(filepath.Join(dir, e.Program))
			return err == nil && info.Mode().IsRegular()
		})
		if !installed {
			continue
		}
		knows, err := e.Knows()
		switch {
		case err != nil:
			found = append(found, fmt.Sprintf("%s: unknown (%v)", e.Name, err))
		case knows:
			found = append(found, e.Name+" knows husk")
		default:
			found = append(found, fmt.Sprintf("%s does not know husk yet (husk install %s)", e.Name, e.Name))
		}
	}
	if c.Detail = strings.Join(found, "; "); c.Detail == "" {
		c.Detail = "no engine is installed; husk run works without one"
	}
	return c
}
