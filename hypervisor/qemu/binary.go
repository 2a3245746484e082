package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	// binaryName is of the one guest architecture there is so far.
	binaryName = "qemu-system-x86_64"
	guestArch  = "x86_64"
	// debianPackage is what an error tells the user to install.
	debianPackage = "qemu-system-x86"
)

// searchDirs is fixed: engines call husk with an empty environment, and a PATH
// taken from a caller could name any program.
var searchDirs = []string{"/usr/local/bin", "/usr/bin", "/usr/libexec"}

// FindBinary returns the QEMU executable: the configured one, which must be
// absolute, or with that empty the first in /usr/local/bin, /usr/bin,
// /usr/libexec. It starts no process; a QEMU that is too old is refused by Start.
func FindBinary(configured string) (string, error) {
	return findBinary(configured, searchDirs)
}

func findBinary(configured string, dirs []string) (string, error) {
	if configured != "" {
		if !filepath.IsAbs(configured) {
			return "", fmt.Errorf("find qemu: configured path %q is not absolute", configured)
		}
		if err := executable(configured); err != nil {
			return "", fmt.Errorf("find qemu: the configured one: %w", err)
		}
		return configured, nil
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, binaryName)
		err := executable(path)
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("find qemu: %w", err)
		}
	}
	return "", fmt.Errorf("find qemu: no %s in %v: install Debian package %s", binaryName, dirs, debianPackage)
}

func executable(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return fmt.Errorf("%s is a directory", path)
	case info.Mode().Perm()&0o111 == 0:
		return fmt.Errorf("%s is not executable", path)
	}
	return nil
}

// version is QEMU's own, as its QMP greeting gives it.
type version struct {
	Major int `json:"major"`
	Minor int `json:"minor"`
	Micro int `json:"micro"`
}

// minVersion is the oldest QEMU tried: Debian 12's, less its minor fixes.
// 7.0 is the first whose microvm has what is used here.
var minVersion = version{Major: 7}

func (v version) String() string {
	return fmt.Sprintf("QEMU %d.%d.%d", v.Major, v.Minor, v.Micro)
}

// check refuses a version below minVersion.
func (v version) check() error {
	if v.Major < minVersion.Major || v.Major == minVersion.Major && v.Minor < minVersion.Minor {
		return fmt.Errorf("%s is too old, %s or later is needed: install Debian package %s of Debian 12 or later",
			v, minVersion, debianPackage)
	}
	return nil
}
