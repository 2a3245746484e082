package specconv

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestNotify(t *testing.T) {
	bind := func(source, destination string, options ...string) specs.Mount {
		return specs.Mount{Source: source, Destination: destination, Type: "bind", Options: append([]string{"bind"}, options...)}
	}
	for name, c := range map[string]struct {
		env    string
		mounts []specs.Mount
		want   string
	}{
		"none":              {"A=b", []specs.Mount{bind("/srv/dir", "/run/notify")}, "null"},
		"abstract":          {"NOTIFY_SOCKET=@x", []specs.Mount{bind("/srv/dir", "/run/notify")}, "null"},
		"of the container":  {"NOTIFY_SOCKET=/run/other/sock", []specs.Mount{bind("/srv/dir", "/run/notify")}, "null"},
		"podman's":          {"NOTIFY_SOCKET=/run/notify/notify.sock", []specs.Mount{bind("/srv/dir", "/run/notify", "ro")}, `{"HostPath":"/srv/dir","Name":"notify.sock","GuestPath":"/run/notify/notify.sock"}`},
		"the socket itself": {"NOTIFY_SOCKET=/x//sock", []specs.Mount{bind("/run/docker.sock", "/x/sock")}, `{"HostPath":"/run/docker.sock","Name":"","GuestPath":"/x/sock"}`},
		"covered":           {"NOTIFY_SOCKET=/run/notify/sock", []specs.Mount{bind("/srv/dir", "/run/notify"), {Destination: "/run", Type: "tmpfs", Source: "tmpfs"}}, "null"},
		"the upper one":     {"NOTIFY_SOCKET=/run/notify/sock", []specs.Mount{bind("/srv/dir", "/run"), bind("/srv/other", "/run/notify")}, `{"HostPath":"/srv/other","Name":"sock","GuestPath":"/run/notify/sock"}`},
		"beside":            {"NOTIFY_SOCKET=/run/notifysock", []specs.Mount{bind("/srv/dir", "/run/notify")}, "null"},
	} {
		spec := Example()
		spec.Process.Env = append(spec.Process.Env, "NOTIFY_SOCKET=/overridden", c.env)
		if c.env == "A=b" {
			spec.Process.Env = []string{c.env}
		}
		spec.Mounts = append(spec.Mounts, c.mounts...)
		plan, err := Convert(testEnv(), spec)
		if err != nil {
			t.Fatal(err)
		}
		if got := asJSON(t, plan.Notify); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, c.want)
		}
	}
}
