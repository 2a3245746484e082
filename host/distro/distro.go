// Package distro finds out which Linux distribution this host runs, so that an error can name
// the command that installs something there.
package distro

import (
	"bufio"
	"io"
	"os"
	"slices"
	"strings"
)

// Software is something that husk needs and distributions have packages for.
type Software int

// The software for which there is advice.
const (
	QEMU   Software = iota // an emulator with the machine type microvm
	Kernel                 // a kernel whose modules can serve a guest
)

// releaseFiles are the places of os-release(5), in the order in which they have to be tried.
var releaseFiles = []string{"/etc/os-release", "/usr/lib/os-release"}

// maxRelease bounds what is read of os-release, in bytes.
const maxRelease = 64 << 10

// family is a group of distributions that install software in the same way.
type family struct {
	ids    []string // values of ID and ID_LIKE in os-release
	advice map[Software]string
}

// families are ordered from special to general: the ID_LIKE of Ubuntu is debian.
var families = []family{
	{[]string{"ubuntu"}, map[Software]string{
		QEMU: "apt-get install qemu-system-x86", Kernel: "apt-get install linux-image-generic",
	}},
	{[]string{"debian"}, map[Software]string{
		QEMU: "apt-get install qemu-system-x86", Kernel: "apt-get install linux-image-amd64",
	}},
	{[]string{"fedora"}, map[Software]string{
		QEMU: "dnf install qemu-system-x86-core", Kernel: "dnf install kernel-core kernel-modules",
	}},
	{[]string{"rhel", "centos"}, map[Software]string{
		QEMU:   "the QEMU of RHEL's family has no machine type microvm: build QEMU's target x86_64-softmmu and set qemu in /etc/husk/config.toml",
		Kernel: "the kernels of RHEL's family have no 9p: unpack another distribution's kernel and set kernel and modules in /etc/husk/config.toml",
	}},
	{[]string{"arch"}, map[Software]string{
		QEMU: "pacman -S qemu-system-x86", Kernel: "pacman -S linux",
	}},
	{[]string{"alpine"}, map[Software]string{
		QEMU: "apk add qemu-system-x86_64", Kernel: "apk add linux-lts",
	}},
	{[]string{"opensuse", "suse", "sles"}, map[Software]string{
		QEMU: "zypper install qemu-x86", Kernel: "zypper install kernel-default",
	}},
	{[]string{"nixos"}, map[Software]string{
		QEMU:   "add pkgs.qemu to environment.systemPackages",
		Kernel: "boot NixOS's own kernel (boot.kernelPackages), which husk finds in /run/booted-system",
	}},
}

// Install returns how to install software on this host: a command, or a sentence if no command
// does it. For an unknown distribution it names the package of Debian.
func Install(s Software) string {
	for _, path := range releaseFiles {
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		defer f.Close()
		return install(f, s)
	}
	return install(strings.NewReader(""), s)
}

func install(release io.Reader, s Software) string {
	for _, id := range ids(release) {
		for _, f := range families {
			if slices.Contains(f.ids, id) {
				return f.advice[s]
			}
		}
	}
	if s == QEMU {
		return "install qemu-system-x86_64 (Debian's package qemu-system-x86)"
	}
	return "install a kernel with its modules (Debian's package linux-image-amd64)"
}

// ids returns the distribution's ID and then its ID_LIKE values. opensuse-leap and similar ones
// count as opensuse.
func ids(release io.Reader) []string {
	values := map[string]string{}
	for lines := bufio.NewScanner(io.LimitReader(release, maxRelease)); lines.Scan(); {
		key, value, ok := strings.Cut(lines.Text(), "=")
		if ok {
			// The values are lower-case words, so quotes are the only shell syntax in them.
			values[key] = strings.Trim(strings.TrimSpace(value), `"'`)
		}
	}
	all := append(strings.Fields(values["ID"]), strings.Fields(values["ID_LIKE"])...)
	for i, id := range all {
		if strings.HasPrefix(id, "opensuse-") {
			all[i] = "opensuse"
		}
	}
	return all
}
