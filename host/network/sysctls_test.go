package network

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// sysctlTree returns a directory that resembles /proc/sys/net, with one value in each file.
func sysctlTree(t *testing.T, values Sysctls) *os.File {
	t.Helper()
	dir := t.TempDir()
	for name, v := range values {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o600)
		if strings.HasSuffix(name, "_count") {
			mode = 0o400
		}
		if err := os.WriteFile(path, []byte(v+"\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestSysctlsAreCarried(t *testing.T) {
	fresh := Sysctls{
		"ipv4/tcp_fin_timeout": "60", "ipv4/tcp_sack": "1", "ipv4/ip_forward": "0", "ipv4/tcp_fastopen_key": "0",
		"ipv4/conf/all/forwarding": "0", "ipv4/conf/default/forwarding": "0", "ipv4/conf/lo/forwarding": "0",
		"ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0", "ipv4/conf/lo/rp_filter": "0",
		"ipv6/conf/default/addr_gen_mode": "0", "ipv6/conf/default/mtu": "1280", "netfilter/nf_conntrack_count": "0",
	}
	now := Sysctls{
		"ipv4/tcp_fin_timeout": "30", "ipv4/tcp_sack": "0", "ipv4/ip_forward": "1", "ipv4/tcp_fastopen_key": "7",
		"ipv4/conf/all/forwarding": "1", "ipv4/conf/default/forwarding": "1", "ipv4/conf/lo/forwarding": "1",
		// Written again, because the value for all interfaces would change it.
		"ipv4/conf/eth0.5/forwarding": "0",
		"ipv4/conf/all/rp_filter":     "0", "ipv4/conf/default/rp_filter": "0", "ipv4/conf/lo/rp_filter": "0", "ipv4/conf/eth0.5/rp_filter": "2",
		"ipv4/conf/other/rp_filter":      "1",
		"ipv6/conf/eth0.5/addr_gen_mode": "1", "ipv6/conf/eth0.5/mtu": "1500", "netfilter/nf_conntrack_count": "5",
		"bridge/of_a_module": "1",
	}
	dir := sysctlTree(t, now)
	read, err := ReadSysctls(dir)
	if err != nil || len(read) != len(now) {
		t.Fatalf("read %v, %v", read, err)
	}
	carried := func(spec map[string]string) string {
		var all []string
		for _, s := range read.Carry(fresh, []Interface{{Name: "eth0.5"}}, dir, spec) {
			all = append(all, s.Path+"="+s.Value)
		}
		return strings.Join(all, " ")
	}
	if got, want := carried(nil), "ipv4/ip_forward=1 ipv4/tcp_fin_timeout=30 ipv4/tcp_sack=0 ipv4/conf/all/forwarding=1 "+
		"ipv4/conf/default/forwarding=1 ipv4/conf/eth0.5/forwarding=0 ipv4/conf/eth0.5/rp_filter=2 ipv4/conf/lo/forwarding=1"; got != want {
		t.Errorf("carried %s\nwant    %s", got, want)
	}
	// config.json has precedence, also for all interfaces.
	if got, want := carried(map[string]string{
		"net.ipv4.tcp_sack": "1", "net.ipv4.conf.all.forwarding": "0", "net.ipv4.conf.eth0/5.rp_filter": "1", "net.ipv4.ip_forward": "0",
	}), "ipv4/tcp_fin_timeout=30"; got != want {
		t.Errorf("beside config.json: carried %s\nwant %s", got, want)
	}
}

func TestFreshSysctls(t *testing.T) {
	ns := newNamespace(t)
	dir, err := os.Open("/proc/sys/net")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	ns.do(func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/tcp_fin_timeout", []byte("31"), 0); err != nil {
			return err
		}
		now, err := ReadSysctls(dir)
		if err != nil {
			return err
		}
		fresh, err := FreshSysctls(dir)
		if err != nil {
			return err
		}
		if now["ipv4/tcp_fin_timeout"] != "31" || fresh["ipv4/tcp_fin_timeout"] == "31" {
			t.Errorf("changed %q, fresh %q", now["ipv4/tcp_fin_timeout"], fresh["ipv4/tcp_fin_timeout"])
		}
		if got := now.Carry(fresh, nil, dir, nil); len(got) != 1 || got[0].Path != "ipv4/tcp_fin_timeout" {
			t.Errorf("carried %v", got)
		}
		return nil
	})
}
