package qemu

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/huskvm/husk/hypervisor"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func tcgConfig() hypervisor.Config {
	return hypervisor.Config{
		Binary: "/usr/bin/qemu-system-x86_64", Accel: hypervisor.TCG,
		MemoryMiB: 1024, VCPUs: 2,
		Kernel: "/var/cache/husk/vmlinux", Initrd: "/var/cache/husk/initrd", Cmdline: "husk.debug=1",
		ShareDir: "/run/husk/c1/share", ShareTag: "husk", ChannelPort: "husk.agent",
	}
}

func TestArgvGolden(t *testing.T) {
	serial := handles{qmp: 3, console: 4, channel: 5, vhost: -1}
	twoNICs := serial
	twoNICs.taps = []int{6, 7}
	cases := map[string]struct {
		change func(*hypervisor.Config)
		handles
		tscKHz int
	}{
		"tcg": {handles: serial, tscKHz: 2596140},
		"tcg-no-share-no-tsc": {handles: serial, change: func(c *hypervisor.Config) {
			c.ShareDir, c.ShareTag, c.Cmdline = "", "", ""
		}},
		"tcg-two-nics": {handles: twoNICs, tscKHz: 2596140, change: func(c *hypervisor.Config) {
			c.NICs = []hypervisor.NIC{{MAC: "02:00:00:00:00:01", Tap: os.Stdin}, {MAC: "02:00:00:00:00:02", Tap: os.Stdin}}
		}},
		"tcg-disks": {handles: handles{qmp: 3, console: 4, channel: 5, vhost: -1, disks: []int{6, 7}}, change: func(c *hypervisor.Config) {
			c.Disks = []hypervisor.Disk{
				{File: os.Stdin, Serial: "disk0", LogicalBlock: 512, PhysicalBlock: 4096},
				{File: os.Stdin, Serial: "a,b", ReadOnly: true, LogicalBlock: 4096, PhysicalBlock: 4096},
			}
		}},
		"kvm-vsock": {handles: handles{qmp: 3, console: 4, channel: 5, vhost: 6, vsockCID: 4242}, change: func(c *hypervisor.Config) {
			c.Accel, c.Vsock = hypervisor.KVM, true
		}},
		"commas": {handles: serial, tscKHz: 1000000, change: func(c *hypervisor.Config) {
			c.ShareDir, c.Kernel = "/run/a,readonly=on/share", "/boot/a,b"
			c.ChannelPort = "a,b"
		}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			cfg := tcgConfig()
			if c.change != nil {
				c.change(&cfg)
			}
			if err := check(cfg); err != nil {
				t.Fatalf("check: %v", err)
			}
			got := strings.Join(newMachine(cfg, c.handles, c.tscKHz).argv(false), "\n") + "\n"
			golden := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatalf("%v: run go test -update", err)
			}
			if got != string(want) {
				t.Errorf("argv differs from %s:\n%s", golden, got)
			}
		})
	}
}

func TestCheckRefuses(t *testing.T) {
	nics := func(n int) []hypervisor.NIC {
		list := make([]hypervisor.NIC, n)
		for i := range list {
			list[i] = hypervisor.NIC{MAC: "02:00:00:00:00:01", Tap: os.Stdin}
		}
		return list
	}
	disk := func(serial string, logical, physical int) []hypervisor.Disk {
		return []hypervisor.Disk{{File: os.Stdin, Serial: serial, LogicalBlock: logical, PhysicalBlock: physical}}
	}
	cases := map[string]struct {
		change func(*hypervisor.Config)
		want   string
	}{
		"accel":       {func(c *hypervisor.Config) { c.Accel = hypervisor.Auto }, `accel "auto" is neither`},
		"memory":      {func(c *hypervisor.Config) { c.MemoryMiB = 63 }, "below 64 MiB"},
		"no vcpus":    {func(c *hypervisor.Config) { c.VCPUs = 0 }, "0 vcpus"},
		"vcpus":       {func(c *hypervisor.Config) { c.VCPUs = 256 }, "256 vcpus"},
		"binary":      {func(c *hypervisor.Config) { c.Binary = "qemu" }, `vmm binary "qemu" is not an absolute path`},
		"kernel":      {func(c *hypervisor.Config) { c.Kernel = "" }, "kernel"},
		"initrd":      {func(c *hypervisor.Config) { c.Initrd = "initrd" }, "initrd"},
		"share tag":   {func(c *hypervisor.Config) { c.ShareTag = "" }, "both a directory and a tag"},
		"share dir":   {func(c *hypervisor.Config) { c.ShareDir = "share" }, "not an absolute path"},
		"channel":     {func(c *hypervisor.Config) { c.ChannelPort = "" }, "port name"},
		"no tap":      {func(c *hypervisor.Config) { c.NICs = nics(2); c.NICs[1].Tap = nil }, "network card 1 has no tap"},
		"mac":         {func(c *hypervisor.Config) { c.NICs = nics(1); c.NICs[0].MAC = "02:00,x=y" }, "is not the MAC"},
		"group mac":   {func(c *hypervisor.Config) { c.NICs = nics(1); c.NICs[0].MAC = "03:00:00:00:00:01" }, "is not the MAC"},
		"devices":     {func(c *hypervisor.Config) { c.NICs = nics(21) }, "24 devices, 21 of them network cards and 0 disks, but the machine has room for 23"},
		"no file":     {func(c *hypervisor.Config) { c.Disks = disk("x", 512, 512); c.Disks[0].File = nil }, "disk 0 has no file"},
		"no serial":   {func(c *hypervisor.Config) { c.Disks = disk("", 512, 512) }, `disk 0: serial number "" is not of 1 to 20 bytes`},
		"long serial": {func(c *hypervisor.Config) { c.Disks = disk(strings.Repeat("x", 21), 512, 512) }, "is not of 1 to 20 bytes"},
		"block size":  {func(c *hypervisor.Config) { c.Disks = disk("x", 768, 1024) }, "blocks of 768 and 1024 bytes"},
		"block sizes": {func(c *hypervisor.Config) { c.Disks = disk("x", 4096, 512) }, "blocks of 4096 and 512 bytes"},
		"disk clone": {func(c *hypervisor.Config) {
			c.Disks, c.RAMFile, c.DeviceState = disk("x", 512, 512), "/ram", "/state"
		}, "no template's"},
		"20 nics fit": {func(c *hypervisor.Config) { c.NICs = nics(20) }, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			cfg := tcgConfig()
			c.change(&cfg)
			err := check(cfg)
			if c.want == "" {
				if err != nil {
					t.Errorf("check: %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("check = %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestCommandLine(t *testing.T) {
	const want = `qemu -append 'a b' '' 'it'\''s' path=/a,b`
	if got := commandLine([]string{"qemu", "-append", "a b", "", "it's", "path=/a,b"}); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
