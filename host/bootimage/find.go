package bootimage

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Where kernels are looked for, below Settings.Root.
const (
	huskKernel  = "/usr/lib/husk/vmlinuz"
	huskModules = "/usr/lib/husk/modules"
	modulesDir  = "/lib/modules"
)

// Find returns the kernel for guests. That is the configured one; else husk's own in
// /usr/lib/husk; else the newest one of the distribution (kernelPlaces) whose modules exist and
// that has what a container needs. Debian's cloud kernels and kernels of RHEL's family have no
// 9p and are passed over. If there is none, the error says what to install and which setting to
// set, and why each kernel that was seen cannot be used.
func Find(s Settings) (*Kernel, error) {
	f := &finder{settings: s, seen: witnesses{}}
	return f.find()
}

type finder struct {
	settings Settings
	seen     witnesses // everything that the result depends on
}

func (f *finder) path(p string) string { return filepath.Join("/", f.settings.Root, p) }

func (f *finder) find() (*Kernel, error) {
	if f.settings.Kernel != "" {
		k, err := f.configured()
		if err != nil {
			return nil, fmt.Errorf("configured kernel %s: %w", f.settings.Kernel, err)
		}
		return k, nil
	}
	if f.settings.Modules != "" {
		return nil, fmt.Errorf("modules is set to %s, but kernel is not set: set both or neither", f.settings.Modules)
	}
	k, err := f.husk()
	if err != nil {
		return nil, fmt.Errorf("husk's kernel %s: %w", f.path(huskKernel), err)
	}
	if k != nil {
		return k, nil
	}
	return f.distribution()
}

func (f *finder) configured() (*Kernel, error) {
	release, err := f.release(f.settings.Kernel)
	if err != nil {
		return nil, err
	}
	k := &Kernel{Path: f.settings.Kernel, Release: release, ModulesDir: f.settings.Modules, Origin: OriginConfigured}
	if k.ModulesDir == "" {
		var own []string
		if dir := filepath.Dir(k.Path); filepath.Base(dir) == "boot" {
			own = []string{filepath.Join(filepath.Dir(dir), modulesDir, release)}
		}
		if k.ModulesDir, err = f.modulesOf(release, own...); err != nil {
			return nil, err
		}
	}
	if k.ModulesDir == "" {
		return k, nil // everything must be built in, which is checked when the kernel is unpacked
	}
	k.modules, err = resolveModules(k.ModulesDir, release, f.seen)
	return k, err
}

// husk returns husk's own kernel; nil if it is not installed.
func (f *finder) husk() (*Kernel, error) {
	path := f.path(huskKernel)
	id, err := f.seen.note(path)
	if err != nil || id.Absent {
		return nil, err
	}
	release, err := f.release(path)
	if err != nil {
		return nil, err
	}
	k := &Kernel{Path: path, Release: release, Origin: OriginHusk}
	dir := f.path(huskModules)
	if id, err = f.seen.note(dir); err != nil || id.Absent {
		return k, err
	}
	k.ModulesDir = dir
	k.modules, err = resolveModules(dir, release, f.seen)
	return k, err
}

// release returns the release of the kernel at path, from its header or its text, or else from
// its file name.
func (f *finder) release(path string) (string, error) {
	id, err := f.seen.note(path)
	if err != nil {
		return "", err
	}
	if id.Absent {
		return "", fs.ErrNotExist
	}
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return "", err
	}
	if !st.Mode().IsRegular() {
		return "", errors.New("not a regular file")
	}
	image, err := imageIn(file, st.Size())
	if err != nil {
		return "", err
	}
	release, err := readRelease(image, image.Size())
	if err != nil {
		return "", err
	}
	if release == "" {
		_, release, _ = strings.Cut(filepath.Base(path), "-")
	}
	if !validRelease(release) {
		return "", errors.New("the kernel's release is neither in the file nor in its name")
	}
	return release, nil
}

func readRelease(file io.ReaderAt, size int64) (string, error) {
	head := make([]byte, len(elfMagic))
	if _, err := file.ReadAt(head, 0); err != nil {
		return "", fmt.Errorf("read kernel: %w", unexpected(err))
	}
	if bytes.Equal(head, elfMagic) {
		return findBanner(io.NewSectionReader(file, 0, size))
	}
	img, err := parseBzImage(file, size)
	if err != nil {
		return "", err
	}
	return img.Release, nil
}

// compareReleases orders kernel releases from old to new in the way dpkg orders versions: runs
// of digits as numbers, other runs as text, and ~ (or -rc) before the release that it leads to.
// If only the flavour differs (6.1.0-9-amd64, 6.1.0-9-rt-amd64), the shorter release counts as
// newer.
func compareReleases(a, b string) int {
	x, y := strings.Replace(a, "-rc", "~rc", 1), strings.Replace(b, "-rc", "~rc", 1)
	for x != "" || y != "" {
		var xs, ys string
		xs, x = splitRun(x, false)
		ys, y = splitRun(y, false)
		if c := cmp.Or(cmp.Compare(textRank(xs), textRank(ys)), len(ys)-len(xs), strings.Compare(xs, ys)); c != 0 {
			return c
		}
		xs, x = splitRun(x, true)
		ys, y = splitRun(y, true)
		xs, ys = strings.TrimLeft(xs, "0"), strings.TrimLeft(ys, "0")
		if c := cmp.Or(len(xs)-len(ys), strings.Compare(xs, ys)); c != 0 {
			return c
		}
	}
	return 0
}

// splitRun splits off the leading run of digits, or of other characters.
func splitRun(s string, digits bool) (run, rest string) {
	i := 0
	for i < len(s) && (s[i] >= '0' && s[i] <= '9') == digits {
		i++
	}
	return s[:i], s[i:]
}

// textRank orders what may follow a number: first a pre-release, then nothing, then anything
// else.
func textRank(run string) int {
	switch {
	case strings.HasPrefix(run, "~"):
		return 0
	case run == "":
		return 1
	}
	return 2
}
