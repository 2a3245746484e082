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

// binaryName is for x86_64, the only architecture of guests so far.
const binaryName = "qemu-system-x86_64"

// searchDirs are searched before PATH, because engines call husk with an empty environment. The
// last one is for NixOS.
var searchDirs = []string{"/usr/local/bin", "/usr/bin", "/usr/libexec", "/run/current-system/sw/bin"}

// FindBinary returns the path of the QEMU executable. That is configured, which must be
// absolute, or if it is empty the first one found in searchDirs and then in the absolute
// directories of PATH. PATH is safe to use, because the caller of husk is root. FindBinary
// starts no process; Start refuses a QEMU that is too old.
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

// version is QEMU's version from its QMP greeting.
type version struct {
	Major int `json:"major"`
	Minor int `json:"minor"`
	Micro int `json:"micro"`
}

// minVersion is the oldest QEMU that husk starts. It is that of Debian 12, and the oldest one
// tested.
var minVersion = version{Major: 7, Minor: 2}

// MinVersion returns the oldest version of QEMU that husk starts, such as "7.2".
func MinVersion() string { return fmt.Sprintf("%d.%d", minVersion.Major, minVersion.Minor) }

// ParseVersion finds the version in the output of `qemu-system-x86_64 --version`, such as
// "7.2.22", and says whether husk starts it. text is empty if there is no version in out.
func ParseVersion(out string) (text string, taken bool) {
	m := printedVersion.FindStringSubmatch(out)
	if m == nil {
		return "", false
	}
	var v version
	for i, n := range []*int{&v.Major, &v.Minor, &v.Micro} {
		*n, _ = strconv.Atoi(m[1+i]) // at most four digits
	}
	return strings.Join(m[1:], "."), v.check() == nil
}

var printedVersion = regexp.MustCompile(`version (\d{1,4})\.(\d{1,4})\.(\d{1,4})`)

func (v version) String() string {
	return fmt.Sprintf("QEMU %d.%d.%d", v.Major, v.Minor, v.Micro)
}

// check returns an error for a version below minVersion.
func (v version) check() error {
	if v.Major < minVersion.Major || v.Major == minVersion.Major && v.Minor < minVersion.Minor {
		return fmt.Errorf("%s is too old, %s or later is needed: %s", v, MinVersion(), distro.Install(distro.QEMU))
	}
	return nil
}
