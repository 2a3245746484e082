package specconv

import (
	"path"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// notify finds out whether the socket that NOTIFY_SOCKET names is one of the host's,
// as podman's --sdnotify=container makes it. A unix socket in a bind is not connected
// with the host's; what is written to this one is passed on.
func (c *converter) notify(spec *specs.Spec) error {
	socket := environment(spec.Process.Env, "NOTIFY_SOCKET")
	if !path.IsAbs(socket) {
		return nil // none, or an abstract one, which is of the network namespace
	}
	socket = path.Clean(socket)
	// The mount that the container finds there is the last one that covers it.
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
			return nil //nolint:nilerr // both are absolute: there is none
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

// environment is the value a process finds, "" if none.
func environment(env []string, name string) string {
	value := ""
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			value = v
		}
	}
	return value
}
