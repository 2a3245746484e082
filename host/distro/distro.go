// Package distro knows which Linux distribution this host runs, so that an error can say
// what to install in that distribution's own words.
package distro

import (
	"bufio"
	"io"
	"os"
	"slices"
	"strings"
)

// Software is something that husk needs and a distribution ships.
type Software int

// What there is advice for.
const (
	QEMU   Software = iota // an emulator with the machine type microvm
	Kernel                 // a kernel whose modules can serve a guest
)

// releaseFiles are where os-release(5) wants to be looked for, in this order.
var releaseFiles = []string{"/etc/os-release", "/usr/lib/os-release"}

// maxRelease bounds what is read of os-release, in bytes.
const maxRelease = 64 << 10

// family is a group of distributions that install software in the same way.
type family struct {
	ids    []string // of os-release's ID and ID_LIKE
	advice map[Software]string
}

// families has the more special ones first: Ubuntu's ID_LIKE is debian.
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

// Install returns how to get software on this host: a command, or a sentence where there is
// no command. On a distribution that is not known it names the package of Debian.
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

// ids returns what the distribution calls itself, then what it says it is like.
// opensuse-leap and its siblings count as opensuse.
func ids(release io.Reader) []string {
	values := map[string]string{}
	for lines := bufio.NewScanner(io.LimitReader(release, maxRelease)); lines.Scan(); {
		key, value, ok := strings.Cut(lines.Text(), "=")
		if ok {
			// The ids are lower-case words: quotes are all the shell syntax they may have.
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
