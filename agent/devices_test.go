package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestLoadDrivers(t *testing.T) {
	device := func(kind string, major, minor int64) *specs.Spec {
		return &specs.Spec{Linux: &specs.Linux{Devices: []specs.LinuxDevice{{Path: "/dev/x", Type: kind, Major: major, Minor: minor}}}}
	}
	bind := func(kind, source string) *specs.Spec {
		return &specs.Spec{Mounts: []specs.Mount{{Destination: "/x", Type: kind, Source: source}}}
	}
	capable := func(name string) *specs.Spec {
		return &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: []string{name}}}}
	}
	dir := t.TempDir()
	list := filepath.Join(dir, "demand")
	text := "tun " + dir + "/no-tun.ko\nother " + dir + "/other.ko\nip_tables " + dir + "/no-ip.ko\n"
	if err := os.WriteFile(list, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	sys := filepath.Join(dir, "sys")
	if err := os.MkdirAll(filepath.Join(sys, "10:229"), 0o700); err != nil {
		t.Fatal(err)
	}
	const noTun = "load driver of /dev/net/tun: load module "
	for name, tc := range map[string]struct {
		spec      *specs.Spec
		list, sys string
		want      string // "": no error
	}{
		"net admin":          {capable("CAP_NET_ADMIN"), list, dir, "load module for CAP_NET_ADMIN: load module " + dir + "/no-ip.ko: "},
		"net admin, no list": {capable("CAP_NET_ADMIN"), dir + "/nosuch", dir, ""},
		"other capability":   {capable("CAP_NET_RAW"), list, dir, ""},
		"nothing":            {&specs.Spec{}, list, dir, ""},
		"other device":       {device("c", 1, 3), list, dir, ""},
		"block device":       {device("b", 10, 200), list, dir, ""},
		"there already":      {device("c", 10, 229), list, sys, ""},
		"module of the list": {device("c", 10, 200), list, sys, noTun + dir + "/no-tun.ko: "},
		"unbuffered":         {device("u", 10, 200), list, sys, noTun},
		"bound":              {bind("bind", "/dev/net/tun"), list, sys, noTun},
		"not bound":          {bind("tmpfs", "/dev/net/tun"), list, sys, ""},
		"not in the list":    {device("c", 10, 229), list, dir, "/dev/fuse (c 10:229): the guest's kernel has no driver for it"},
		"no list":            {device("c", 10, 229), dir + "/nosuch", dir, "/dev/fuse (c 10:229): the guest's kernel has no driver for it"},
	} {
		t.Run(name, func(t *testing.T) {
			err := loadDrivers(tc.spec, tc.list, tc.sys)
			if (err == nil) != (tc.want == "") || err != nil && !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}
