package specconv

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestGuestSpec(t *testing.T) {
	plan := &Plan{Guest: &specs.Spec{
		Mounts: []specs.Mount{{Destination: "/tmp", Type: "tmpfs"}},
		Linux:  &specs.Linux{Resources: &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(7))}}},
	}}
	before := asJSON(t, plan)
	found := Found{
		CPUs: 2, CgroupsPath: "/a/b", Hostname: "h", Domainname: "d",
		Mounts: []specs.Mount{{Destination: "/tmp", Type: "tmpfs", Options: []string{"mode=1777"}}},
	}
	const want = `{"ociVersion":"","hostname":"h","domainname":"d","mounts":[{"destination":"/tmp","type":"tmpfs","options":["mode=1777"]}],` +
		`"linux":{"resources":{"cpu":{"shares":7,"cpus":"0-1"}},"cgroupsPath":"/a/b"}}`
	if got := asJSON(t, plan.GuestSpec(found)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if after := asJSON(t, plan); after != before {
		t.Errorf("the plan was changed\nfrom %s\nto   %s", before, after)
	}
	named := &Plan{Guest: &specs.Spec{Hostname: "own", Domainname: "own.d", Linux: &specs.Linux{}}}
	if got := named.GuestSpec(found); got.Hostname != "own" || got.Domainname != "own.d" {
		t.Errorf("names %q and %q are not the container's own", got.Hostname, got.Domainname)
	}
}
