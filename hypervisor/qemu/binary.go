package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/huskvm/husk/host/distro"
)

const (
	// binaryName is of the one guest architecture there is so far.
	binaryName = "qemu-system-x86_64"
	guestArch  = "x86_64"
)

// searchDirs are searched before PATH: engines call husk with an empty environment. The
// last is NixOS's.
var searchDirs = []string{"/usr/local/bin", "/usr/bin", "/usr/libexec", "/run/current-system/sw/bin"}

// FindBinary returns the QEMU executable: the configured one, which must be absolute, or
// with that empty the first in searchDirs, then in the absolute directories of PATH. Who
// calls husk is root and could run any program anyway. FindBinary starts no process; a QEMU
// that is too old is refused by Start.
func FindBinary(configured string) (string, error) {
	dirs := slices.Clone(searchDirs)
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if filepath.IsAbs(dir) && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return findBinary(configured, dirs)
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
	return "", fmt.Errorf("find qemu: no %s in %v: %s", binaryName, dirs, distro.Install(distro.QEMU))
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

// minVersion is the oldest QEMU that husk starts: Debian 12's, the oldest that husk is
// tested with.
var minVersion = version{Major: 7, Minor: 2}

// MinVersion is the oldest version of QEMU that husk takes, such as "7.2".
func MinVersion() string { return fmt.Sprintf("%d.%d", minVersion.Major, minVersion.Minor) }

// ParseVersion finds the version in what `qemu-system-x86_64 --version` prints, such as
// "7.2.22", and says whether husk takes it. The version is empty where there is none.
func ParseVersion(out string) (text string, taken bool) {
	m := printedVersion.FindStringSubmatch(out)
	if m == nil {
		return "", false
	}
	var v version
	for i, n := range []*int{&v.Major, &v.Minor, &v.Micro} {
		*n, _ = strconv.Atoi(m[1+i]) // four digits at most
	}
	return strings.Join(m[1:], "."), v.check() == nil
}

var printedVersion = regexp.MustCompile(`version (\d{1,4})\.(\d{1,4})\.(\d{1,4})`)

func (v version) String() string {
	return fmt.Sprintf("QEMU %d.%d.%d", v.Major, v.Minor, v.Micro)
}

// check refuses a version below minVersion.
func (v version) check() error {
	if v.Major < minVersion.Major || v.Major == minVersion.Major && v.Minor < minVersion.Minor {
		return fmt.Errorf("%s is too old, %s or later is needed: %s", v, MinVersion(), distro.Install(distro.QEMU))
	}
	return nil
}
