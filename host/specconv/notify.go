package specconv

import (
	"path"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// notify finds out whether NOTIFY_SOCKET names a socket of the host, as podman's
// --sdnotify=container makes it. A unix socket in a bind of the guest is not connected to the
// host's, so the agent passes on what is written to it.
func (c *converter) notify(spec *specs.Spec) error {
	socket := environment(spec.Process.Env, "NOTIFY_SOCKET")
	if !path.IsAbs(socket) {
		return nil // none, or an abstract one, which belongs to the network namespace
	}
	socket = path.Clean(socket)
	// The last mount that covers the path is the one that the container sees.
	source := ""
	for _, m := range c.plan.Guest.Mounts {
		if covers(m.Destination, socket) {
			source = m.Source
		}
	}
	for _, s := range c.plan.Shares[1:] {
		if path.Join(GuestShareDir, s.Name) != source || s.IDMap != nil {
			continue
		}
		name, err := filepath.Rel(s.Destination, socket)
		if err != nil {
			return nil //nolint:nilerr // both paths are absolute, so there is no error
		}
		if name == "." {
			name = ""
		}
		c.plan.Notify = &Notify{HostPath: s.HostPath, Name: name, GuestPath: socket}
	}
	return nil
}

func covers(dir, p string) bool {
	return dir == "/" || p == dir || strings.HasPrefix(p, dir+"/")
}

// environment returns the value of a variable as the process sees it; "" if it is not set.
func environment(env []string, name string) string {
	value := ""
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			value = v
		}
	}
	return value
}
