package libcontainer

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestParseMountOptions(t *testing.T) {
	const atime = unix.MOUNT_ATTR__ATIME
	for _, tt := range []struct {
		options string
		want    mountOptions
	}{
		{"", mountOptions{}},
		{"defaults", mountOptions{}},
		{"ro,nosuid,nodev,noexec", mountOptions{
			Flags: unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC,
			Set:   unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC,
		}},
		{"ro,rw", mountOptions{Clear: unix.MOUNT_ATTR_RDONLY}},
		{"rw,ro", mountOptions{Flags: unix.MS_RDONLY, Set: unix.MOUNT_ATTR_RDONLY}},
		{"suid,dev,exec", mountOptions{Clear: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}},
		{"noatime", mountOptions{Flags: unix.MS_NOATIME, Set: unix.MOUNT_ATTR_NOATIME, Clear: atime}},
		{"noatime,strictatime", mountOptions{Flags: unix.MS_STRICTATIME, Set: unix.MOUNT_ATTR_STRICTATIME, Clear: atime}},
		{"strictatime,relatime", mountOptions{Flags: unix.MS_RELATIME, Clear: atime}},
		{"nodiratime,nosymfollow", mountOptions{
			Flags: unix.MS_NODIRATIME | unix.MS_NOSYMFOLLOW,
			Set:   unix.MOUNT_ATTR_NODIRATIME | unix.MOUNT_ATTR_NOSYMFOLLOW,
		}},
		{"sync,dirsync,mand,lazytime,silent,iversion", mountOptions{
			Flags: unix.MS_SYNCHRONOUS | unix.MS_DIRSYNC | unix.MS_MANDLOCK | unix.MS_LAZYTIME | unix.MS_SILENT | unix.MS_I_VERSION,
		}},
		{"sync,async,mand,nomand", mountOptions{}},
		{"bind", mountOptions{Flags: unix.MS_BIND}},
		{"rbind,remount", mountOptions{Flags: unix.MS_BIND | unix.MS_REC | unix.MS_REMOUNT}},
		{"rprivate,shared", mountOptions{Propagation: []uintptr{unix.MS_PRIVATE | unix.MS_REC, unix.MS_SHARED}}},
		{"rro,rnosuid,rnoatime", mountOptions{
			RecursiveSet:   unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOATIME,
			RecursiveClear: atime,
		}},
		{"rro,rrw,rnoexec,rexec", mountOptions{RecursiveClear: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOEXEC}},
		{"tmpcopyup,size=5m,mode=755,rsync,nr_inodes=4", mountOptions{CopyUp: true, Data: "size=5m,mode=755,rsync,nr_inodes=4"}},
		{"idmap", mountOptions{IDMap: true}},
	} {
		t.Run(tt.options, func(t *testing.T) {
			var options []string
			if tt.options != "" {
				options = strings.Split(tt.options, ",")
			}
			if got := parseMountOptions(options); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("%s: %+v, want %+v", tt.options, got, tt.want)
			}
		})
	}
}

func FuzzMountOptions(f *testing.F) {
	f.Add("ro,rw,noatime,rro,rprivate,size=5m")
	f.Add("rbind,tmpcopyup,mode=755,,r")
	f.Fuzz(func(t *testing.T, text string) {
		options := strings.Split(text, ",")
		m := parseMountOptions(options)
		if m.Set&m.Clear&^unix.MOUNT_ATTR__ATIME != 0 || m.RecursiveSet&m.RecursiveClear&^unix.MOUNT_ATTR__ATIME != 0 {
			t.Errorf("an attribute is both set and cleared: %+v", m)
		}
		// The kernel sets a new access time mode only if the old one is cleared in the same
		// call.
		if m.Set&unix.MOUNT_ATTR__ATIME != 0 && m.Clear&unix.MOUNT_ATTR__ATIME != unix.MOUNT_ATTR__ATIME {
			t.Errorf("access time mode without the clear: %+v", m)
		}
		for o := range strings.SplitSeq(m.Data, ",") {
			if _, ok := lookupMountFlag(o); ok {
				t.Errorf("flag %q is given to the filesystem", o)
			}
		}
	})
}

func FuzzReadConfig(f *testing.F) {
	seed := func(cfg *initConfig) {
		var b bytes.Buffer
		if err := writeConfig(&b, cfg); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	seed(&initConfig{Process: processConfig{Args: []string{"x"}}})
	seed(&initConfig{
		Join:    true,
		Process: processConfig{Args: []string{"x"}, Rlimits: []rlimitConfig{{1, 2, 3}}, ConsoleSize: &unix.Winsize{Row: 1}},
		Mounts:  []mountConfig{{Destination: "/x", mountOptions: mountOptions{Flags: 1, Data: "y"}}},
		UserNS:  true,
		Hooks:   containerHooks{StartContainer: []specs.Hook{{Path: "/x"}}},
	})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add(binary.BigEndian.AppendUint32(nil, 2))
	f.Fuzz(func(t *testing.T, msg []byte) {
		cfg, err := readConfig(bytes.NewReader(msg))
		if err != nil {
			return
		}
		// Writing and reading again must change nothing.
		var b bytes.Buffer
		if err := writeConfig(&b, cfg); err != nil {
			t.Fatal(err)
		}
		again, err := readConfig(&b)
		if err != nil {
			t.Fatal(err)
		}
		var second bytes.Buffer
		if err := writeConfig(&second, again); err != nil {
			t.Fatal(err)
		}
		b.Reset()
		if err := writeConfig(&b, cfg); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b.Bytes(), second.Bytes()) {
			t.Errorf("%q became %q", b.Bytes(), second.Bytes())
		}
	})
}

func TestConfigSurvives(t *testing.T) {
	p, err := newProcessConfig(&specs.Process{
		Args: []string{"a", ""}, Env: []string{"A=b"}, Cwd: "/x", Terminal: true,
		ConsoleSize: &specs.Box{Height: 3, Width: 4}, OOMScoreAdj: ptr(-5),
		Capabilities: &specs.LinuxCapabilities{Ambient: []string{"CAP_CHECKPOINT_RESTORE"}},
		Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_CPU", Soft: 1<<64 - 1, Hard: 1<<64 - 1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := newMounts([]specs.Mount{{Destination: "x/../y", Type: "tmpfs", Options: []string{"ro", "rslave", "rro", "size=1"}}})
	if err != nil {
		t.Fatal(err)
	}
	cfg := &initConfig{Process: p, Mounts: mounts, UserNS: true}
	var b bytes.Buffer
	if err := writeConfig(&b, cfg); err != nil {
		t.Fatal(err)
	}
	got, err := readConfig(&b)
	if err != nil || !reflect.DeepEqual(got, cfg) {
		t.Errorf("%+v, %v\nwant %+v", got, err, cfg)
	}
}

func TestSysctlFile(t *testing.T) {
	all := func(specs.LinuxNamespaceType) bool { return true }
	for key, want := range map[string]string{
		"net.ipv4.ip_forward":               "net/ipv4/ip_forward",
		"net/ipv4/conf/eth0.100/forwarding": "net/ipv4/conf/eth0.100/forwarding",
		"net.ipv4.conf.eth0/100.forwarding": "net/ipv4/conf/eth0.100/forwarding",
		"kernel.sem":                        "kernel/sem",
		"fs.mqueue.msg_max":                 "fs/mqueue/msg_max",
	} {
		got, err := newSysctl(map[string]string{key: "1"}, all)
		if err != nil || got[0].File != want {
			t.Errorf("%s: %v, %v; want %s", key, got, err, want)
		}
	}
	for _, key := range []string{"net/../kernel/panic", "net..kernel", "/net/x", "../net", "kernel.panic", "kernel.hostname", "net", ""} {
		if got, err := newSysctl(map[string]string{key: "1"}, all); err == nil {
			t.Errorf("%q was accepted: %v", key, got)
		}
	}
	none := func(specs.LinuxNamespaceType) bool { return false }
	for _, key := range []string{"net.core.somaxconn", "kernel.sem", "kernel.domainname", "fs.mqueue.msg_max"} {
		if _, err := newSysctl(map[string]string{key: "1"}, none); err == nil {
			t.Errorf("%q was accepted without a namespace", key)
		}
	}
}
