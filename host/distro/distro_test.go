package distro

import (
	"strings"
	"testing"
)

func TestInstall(t *testing.T) {
	for _, c := range []struct{ name, release, qemu, kernel string }{
		{"Debian", "PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\n", "apt-get install qemu-system-x86", "linux-image-amd64"},
		{"Ubuntu", "ID=ubuntu\nID_LIKE=debian\n", "apt-get install qemu-system-x86", "linux-image-generic"},
		{"Mint", "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", "apt-get", "linux-image-generic"},
		{"Fedora", "NAME=\"Fedora Linux\"\nID=fedora\n", "dnf install qemu-system-x86-core", "dnf install kernel-core"},
		{"AlmaLinux", "ID=\"almalinux\"\nID_LIKE=\"rhel centos fedora\"\n", "no machine type microvm", "have no 9p"},
		{"Arch", "ID=arch\n", "pacman -S qemu-system-x86", "pacman -S linux"},
		{"Alpine", "ID=alpine\n", "apk add qemu-system-x86_64", "apk add linux-lts"},
		{"openSUSE", "ID=\"opensuse-tumbleweed\"\nID_LIKE=\"opensuse suse\"\n", "zypper install qemu-x86", "kernel-default"},
		{"NixOS", "ID=nixos\n", "environment.systemPackages", "/run/booted-system"},
		{"unknown", "ID=plan9\n", "Debian's package qemu-system-x86", "Debian's package linux-image-amd64"},
		{"empty", "", "Debian's package qemu-system-x86", "Debian's package linux-image-amd64"},
		{"damaged", "\x00=\n=\nID\nID=\n", "Debian's package", "Debian's package"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := install(strings.NewReader(c.release), QEMU); !strings.Contains(got, c.qemu) {
				t.Errorf("QEMU: %q, want %q in it", got, c.qemu)
			}
			if got := install(strings.NewReader(c.release), Kernel); !strings.Contains(got, c.kernel) {
				t.Errorf("kernel: %q, want %q in it", got, c.kernel)
			}
		})
	}
}

// TestFamilies: every family has advice for all software.
func TestFamilies(t *testing.T) {
	for _, f := range families {
		for _, s := range []Software{QEMU, Kernel} {
			if f.advice[s] == "" {
				t.Errorf("%v has no advice for %d", f.ids, s)
			}
		}
	}
}

// FuzzInstall: there is advice whatever os-release contains.
func FuzzInstall(f *testing.F) {
	f.Add("ID=\"opensuse-leap\"\nID_LIKE='suse x'\n")
	f.Add("ID=\n=\n")
	f.Fuzz(func(t *testing.T, release string) {
		for _, s := range []Software{QEMU, Kernel} {
			if install(strings.NewReader(release), s) == "" {
				t.Errorf("no advice for %v", s)
			}
		}
	})
}
