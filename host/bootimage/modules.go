package bootimage

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

const (
	maxModule    = 64 << 20 // bytes of one unpacked module; the ones used are below 4 MiB
	maxDepFile   = 64 << 20 // bytes of modules.dep or modules.builtin; Debian's are below 1 MiB
	maxModules   = 1024     // modules in one initramfs; with more modules.dep is damaged
	maxNameBytes = 4096
)

// wanted are the modules that the guest of any container needs, by name. Where dependencies
// allow it they are loaded in this order: first the bus and the agent channel, so that the host
// learns of a failure early.
//
// Each module costs boot time, so modules that only some containers use are in onDemand.
// virtio_pci is missing because microvm has no PCI.
var wanted = []struct {
	name     string
	required bool
}{
	{"virtio_mmio", true},
	{"virtio_console", true}, // the agent channel if vsock is not used
	{"vmw_vsock_virtio_transport", false},
	{"9pnet_virtio", true},
	{"9p", true},        // rootfs and volumes
	{"virtiofs", false}, // a faster file system; it loads fuse, which containers use as well
	{"overlay", false},
	{"virtio_net", false},
	{"virtio_rng", false},     // entropy at once
	{"virtio_balloon", false}, // gives memory back to the host
	// These are built into Debian's kernels. Programs expect them on other kernels too.
	{"unix", false},
	{"af_packet", false}, // ping, DHCP clients, tcpdump
	{"ipv6", false},
}

// module is a module of the guest.
type module struct {
	Name string // such as virtio_net, with underscores
	Path string // on the host; the file may be compressed
	// For lists the modules of onDemand that need it. If it is empty, the module is loaded at
	// boot.
	For []string
	// Aliases are patterns of the names by which the kernel asks for a module of onDemand.
	Aliases []string
}

// guestPath returns the module's path in the initramfs. A module on demand is compressed there.
func (m module) guestPath() string {
	file := "/lib/modules/" + m.Name + ".ko"
	if len(m.For) > 0 {
		file += ".gz"
	}
	return file
}

// moduleNotFoundError is returned for a kernel that lacks a driver which every container needs.
type moduleNotFoundError struct{ name, modulesDir string }

func (e *moduleNotFoundError) Error() string {
	hint := ""
	if strings.HasPrefix(e.name, "9p") {
		hint = " (Debian's cloud kernels leave 9p out; linux-image-amd64 has it)"
	}
	return fmt.Sprintf("the kernel has no %s: it is neither built in nor a module in %s%s", e.name, e.modulesDir, hint)
}

// resolveModules returns the wanted modules and their dependencies in load order, by
// modules.dep and modules.builtin in dir. release is used in errors.
func resolveModules(dir, release string, seen witnesses) ([]module, error) {
	r, err := readModuleLists(dir, release, seen)
	if err != nil {
		return nil, err
	}
	if err := r.addWanted(); err != nil {
		return nil, err
	}
	// After the wanted ones: a module that is loaded at boot is no module on demand.
	atBoot := len(r.order)
	neededFor, err := r.addOnDemand()
	if err != nil {
		return nil, r.outdated(err)
	}
	aliases, err := readAliases(dir, seen)
	if err != nil {
		return nil, fmt.Errorf("%w: run %s", err, depmodCommand(dir, release))
	}
	mods := make([]module, 0, len(r.order))
	for i, name := range r.order {
		m := module{Name: name, Path: filepath.Join(dir, r.entries[name].path)}
		if i >= atBoot {
			m.For = neededFor[name]
		}
		if slices.Contains(m.For, name) {
			m.Aliases = aliases[name]
		}
		if err := r.witness(m, seen); err != nil {
			return nil, err
		}
		mods = append(mods, m)
	}
	return mods, nil
}

// readModuleLists reads what depmod has written about the modules in dir.
func readModuleLists(dir, release string, seen witnesses) (*resolver, error) {
	r := &resolver{dir: dir, release: release, state: map[string]int{}}
	dep, err := readListFile(r.depPath(), seen)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is missing: run %s", r.depPath(), depmodCommand(dir, release))
	}
	if err != nil {
		return nil, err
	}
	// If the file is missing, no module counts as built in.
	builtin, err := readListFile(filepath.Join(dir, "modules.builtin"), seen)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if r.entries, err = parseModulesDep(bytes.NewReader(dep)); err != nil {
		return nil, fmt.Errorf("read %s: %w: run %s", r.depPath(), err, depmodCommand(dir, release))
	}
	if r.builtin, err = parseModulesBuiltin(bytes.NewReader(builtin)); err != nil {
		return nil, fmt.Errorf("read modules.builtin in %s: %w", dir, err)
	}
	return r, nil
}

// depmodCommand returns the command that makes modules.dep of dir.
func depmodCommand(dir, release string) string {
	base, ok := strings.CutSuffix(filepath.Clean(dir), "/lib/modules/"+release)
	if ok && base != "" {
		return fmt.Sprintf("%q", "depmod -b "+base+" "+release)
	}
	return fmt.Sprintf("%q", "depmod "+release)
}

// readListFile reads a file that depmod has written.
func readListFile(path string, seen witnesses) ([]byte, error) {
	if _, err := seen.note(path); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxDepFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxDepFile {
		return nil, fmt.Errorf("read %s: larger than %d MiB", path, maxDepFile>>20)
	}
	return b, nil
}

type depEntry struct {
	path string   // of the file, relative to the module directory
	deps []string // names of modules
}

// parseModulesDep parses modules.dep. Its lines are "FILE: FILE...": a module, and all that
// must be loaded before it. Of two files with the same name the first one counts.
func parseModulesDep(r io.Reader) (map[string]depEntry, error) {
	entries := map[string]depEntry{}
	err := eachLine(r, func(line string) error {
		file, rest, ok := strings.Cut(line, ":")
		if !ok {
			return fmt.Errorf("line without a colon: %.100q", line)
		}
		name, err := moduleName(file)
		if err != nil {
			return err
		}
		e := depEntry{path: file}
		for _, d := range strings.Fields(rest) {
			dep, err := moduleName(d)
			if err != nil {
				return err
			}
			e.deps = append(e.deps, dep)
		}
		if _, dup := entries[name]; !dup {
			entries[name] = e
		}
		return nil
	})
	return entries, err
}

// parseModulesBuiltin parses modules.builtin, which has one file name in each line.
func parseModulesBuiltin(r io.Reader) (map[string]bool, error) {
	names := map[string]bool{}
	err := eachLine(r, func(line string) error {
		name, err := moduleName(line)
		names[name] = true
		return err
	})
	return names, err
}

func eachLine(r io.Reader, f func(line string) error) error {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		line := strings.TrimSpace(s.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if err := f(line); err != nil {
			return err
		}
	}
	return s.Err()
}

// moduleName returns the name of the module in a file. The kernel does not distinguish - and _.
// file must be below the module directory.
func moduleName(file string) (string, error) {
	if !filepath.IsLocal(file) || len(file) > maxNameBytes {
		return "", fmt.Errorf("module path %.100q is not below the module directory", file)
	}
	name, ext, ok := strings.Cut(path.Base(file), ".ko")
	if !ok || name == "" || ext != "" && ext[0] != '.' {
		return "", fmt.Errorf("%.100q is not a module", file)
	}
	return strings.ReplaceAll(name, "-", "_"), nil
}

type resolver struct {
	dir, release string // of the kernel, for errors
	entries      map[string]depEntry
	builtin      map[string]bool
	state        map[string]int // 1: its dependencies are being added; 2: it was added
	order        []string
}

func (r *resolver) depPath() string { return filepath.Join(r.dir, "modules.dep") }

// outdated returns the error for lists that contradict themselves or the files.
func (r *resolver) outdated(err error) error {
	return fmt.Errorf("%s: %w: run %s", r.depPath(), err, depmodCommand(r.dir, r.release))
}

// addWanted appends the modules that a guest loads at boot.
func (r *resolver) addWanted() error {
	for _, w := range wanted {
		_, known := r.entries[w.name]
		switch {
		case r.builtin[w.name]:
		case known:
			if err := r.add(w.name); err != nil {
				return r.outdated(err)
			}
		case w.required:
			return &moduleNotFoundError{name: w.name, modulesDir: r.dir}
		}
	}
	return nil
}

// witness notes the module's file, whose change makes the image outdated, and checks that it
// is there. For modules on demand modules.dep is a sufficient witness, because whoever
// installs a module writes it again. Noting 400 more files would cost each start a millisecond.
func (r *resolver) witness(m module, seen witnesses) error {
	note := seen.note
	if len(m.For) > 0 {
		note = identify
	}
	id, err := note(m.Path)
	if err != nil {
		return err
	}
	if id.Absent {
		return fmt.Errorf("%s is out of date: %s is missing: run %s", r.depPath(), m.Path, depmodCommand(r.dir, r.release))
	}
	return nil
}

// add appends the module name after everything that it depends on. It follows the line of each
// module. The order within a line, which is the reverse of loading, is not used.
func (r *resolver) add(name string) error {
	switch r.state[name] {
	case 1:
		return fmt.Errorf("module %s depends on itself", name)
	case 2:
		return nil
	}
	e, ok := r.entries[name]
	if !ok {
		return fmt.Errorf("module %s is depended on but not listed", name)
	}
	if len(r.state) == maxModules {
		return fmt.Errorf("more than %d modules are needed", maxModules)
	}
	r.state[name] = 1
	for i := len(e.deps) - 1; i >= 0; i-- {
		if r.builtin[e.deps[i]] {
			continue
		}
		if err := r.add(e.deps[i]); err != nil {
			return err
		}
	}
	r.state[name] = 2
	r.order = append(r.order, name)
	return nil
}

// readModule returns the module's content, unpacked if the file is compressed.
func readModule(m module) ([]byte, error) {
	f, err := os.Open(m.Path)
	if err != nil {
		return nil, fmt.Errorf("read module: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxModule+1))
	if err != nil {
		return nil, fmt.Errorf("read module: %w", err)
	}
	if len(b) > maxModule {
		return nil, fmt.Errorf("read module %s: larger than %d MiB", m.Path, maxModule>>20)
	}
	// The content decides, not the suffix of the name.
	if !bytes.HasPrefix(b, elfMagic) {
		var out bytes.Buffer
		if _, err := decompress(&out, bytes.NewReader(b), b, maxModule); err != nil {
			return nil, fmt.Errorf("read module %s: %w", m.Path, err)
		}
		b = out.Bytes()
	}
	if !bytes.HasPrefix(b, elfMagic) {
		return nil, fmt.Errorf("read module %s: it is not an ELF file", m.Path)
	}
	return b, nil
}
