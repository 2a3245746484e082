package bootimage

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/huskvm/husk/host/distro"
)

// kernelPlaces are where distributions keep their kernels: a glob pattern for directories, and
// one for files in them. If a release is found in several places, the first place counts.
var kernelPlaces = []struct{ dir, file string }{
	{"/boot", "vmlinuz*"},          // Debian, Fedora, openSUSE: vmlinuz-RELEASE; Arch: vmlinuz-linux; Alpine: vmlinuz-lts
	{"/boot", "kernel-*"},          // Gentoo
	{modulesDir + "/*", "vmlinuz"}, // Fedora and Arch, also where /boot is not mounted
	{"/usr/lib/modules/*", "vmlinuz"},
	{"/boot/*/*", "linux"}, // systemd-boot: MACHINE-ID/RELEASE/linux
	{"/efi/*/*", "linux"},
	{"/boot/EFI/Linux", "*.efi"}, // unified kernel images
	{"/boot/efi/EFI/Linux", "*.efi"},
	{"/efi/EFI/Linux", "*.efi"},
	{"/run/booted-system", "kernel"}, // NixOS
}

// moduleRoots are the directories in which the modules of a release are looked for, in a
// subdirectory with the release's name.
var moduleRoots = []string{modulesDir, "/usr/lib/modules", "/run/booted-system/kernel-modules/lib/modules"}

// modulesOf returns the first existing directory with the modules of a release: one of own,
// else one below moduleRoots. It returns "" if there is none.
func (f *finder) modulesOf(release string, own ...string) (string, error) {
	dirs := own
	for _, root := range moduleRoots {
		dirs = append(dirs, f.path(filepath.Join(root, release)))
	}
	for _, dir := range dirs {
		id, err := f.seen.note(dir)
		if err != nil {
			return "", err
		}
		if !id.Absent {
			return dir, nil
		}
	}
	return "", nil
}

// found is a kernel of the distribution with its release.
type found struct{ path, release string }

func (f *finder) distribution() (*Kernel, error) {
	kernels, passedOver, err := f.search()
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(kernels, func(a, b found) int { return compareReleases(b.release, a.release) })
	tried := map[string]bool{}
	for _, c := range kernels {
		if tried[c.release] {
			continue // the same kernel in another place, with the same modules
		}
		tried[c.release] = true
		k, err := f.candidate(c)
		if err == nil {
			k.PassedOver = passedOver
			return k, nil
		}
		passedOver = append(passedOver, fmt.Sprintf("%s: %v", c.path, err))
	}
	return nil, &NotFoundError{PassedOver: passedOver}
}

// search returns the kernels in kernelPlaces. passedOver has "PATH: reason" for each that
// cannot be read.
func (f *finder) search() (kernels []found, passedOver []string, err error) {
	for _, place := range kernelPlaces {
		// The directory before the first wildcard changes when a kernel is added.
		parent, _, _ := strings.Cut(place.dir, "/*")
		if _, err := f.seen.note(f.path(parent)); err != nil {
			return nil, nil, err
		}
		paths, err := filepath.Glob(f.path(filepath.Join(place.dir, place.file)))
		if err != nil {
			return nil, nil, fmt.Errorf("search kernels: %w", err)
		}
		for _, path := range paths {
			if leftOver(filepath.Base(path)) {
				continue
			}
			release, err := f.release(path)
			switch {
			case errors.Is(err, fs.ErrNotExist): // removed since, or a dangling link
			case err != nil:
				passedOver = append(passedOver, fmt.Sprintf("%s: %v", path, err))
			default:
				kernels = append(kernels, found{path, release})
			}
		}
	}
	return kernels, passedOver, nil
}

func (f *finder) candidate(c found) (_ *Kernel, err error) {
	k := &Kernel{Path: c.path, Release: c.release, Origin: OriginDistribution}
	if k.ModulesDir, err = f.modulesOf(c.release); err != nil {
		return nil, err
	}
	if k.ModulesDir == "" {
		return nil, fmt.Errorf("its modules are not in %s", f.path(filepath.Join(modulesDir, c.release)))
	}
	k.modules, err = resolveModules(k.ModulesDir, c.release, f.seen)
	return k, err
}

// NotFoundError means that the host has no kernel for guests.
type NotFoundError struct {
	PassedOver []string // "PATH: why it will not do"
}

func (e *NotFoundError) Error() string {
	return "no kernel for guests found: " + e.Why() + ": " + e.Advice()
}

// Why names the kernels that were seen, each with the reason why it cannot be used.
func (e *NotFoundError) Why() string {
	if len(e.PassedOver) > 0 {
		return strings.Join(e.PassedOver, "; ")
	}
	return "there is none in /boot, " + modulesDir + " or /run/booted-system"
}

// Advice says what to install on this distribution.
func (e *NotFoundError) Advice() string {
	return distro.Install(distro.Kernel) + ", or set `kernel`, and `modules` if need be, in /etc/husk/config.toml"
}

// leftOver says whether a file is a copy that some tool has put aside, or a rescue image.
func leftOver(name string) bool {
	for _, suffix := range []string{".old", ".bak", ".orig", ".sig", ".efi.signed", ".dpkg-new", ".dpkg-tmp", ".dpkg-bak", "~"} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return strings.Contains(name, "-rescue-")
}
