package main

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// prober is the path at which host/bootimage puts this program, for the kernel to execute
	// when it lacks a module. It is not the kernel's default path, so the kernel executes
	// nothing for this purpose during boot, where each request would cost the time of a
	// process.
	prober = "/lib/modules/modprobe"
	// proberSysctl holds the path that the kernel executes (admin-guide/sysctl/kernel.rst).
	proberSysctl = "/proc/sys/kernel/modprobe"
	// aliasFile has in each line a pattern and a name that demandFile has.
	aliasFile = "/lib/modules/aliases"
	// packedModule is the suffix of compressed modules.
	packedModule = ".ko.gz"
	// maxModule bounds the size of an unpacked module, in bytes. host/bootimage has the same
	// limit.
	maxModule = 64 << 20
)

// answerKernel tells the kernel to execute prober when it lacks a module. A kernel without
// module support has no such sysctl.
func answerKernel() error {
	err := os.WriteFile(proberSysctl, []byte(prober), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("have the kernel ask for modules: %w", err)
	}
	return nil
}

// isProber says whether the kernel has started this process to load a module.
func isProber() bool { return os.Args[0] == prober }

// probe loads a module for the kernel, which passes modprobe's arguments: "-q -- NAME". The
// kernel looks only at the exit code.
func probe() {
	names, err := modulesFor(aliasFile, os.Args[len(os.Args)-1])
	for _, name := range names {
		err = errors.Join(err, loadOnDemand(demandFile, name))
	}
	if err != nil {
		os.Exit(1)
	}
}

// modulesFor returns the names in demandFile that name may stand for: the name itself and what
// it is an alias of.
func modulesFor(list, name string) ([]string, error) {
	f, err := os.Open(list)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	// modprobe, and so the kernel, does not distinguish "-" and "_".
	name = strings.ReplaceAll(name, "-", "_")
	names := []string{name}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		pattern, of, ok := strings.Cut(lines.Text(), " ")
		if !ok {
			continue
		}
		if matches, _ := path.Match(strings.ReplaceAll(pattern, "-", "_"), name); matches {
			names = append(names, of)
		}
	}
	return names, lines.Err()
}

// loadOnDemand loads all modules that list has for a name. There may be none.
func loadOnDemand(list, name string) error {
	f, err := os.Open(list)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if module, file, ok := strings.Cut(lines.Text(), " "); ok && module == name {
			if isLoaded(strings.TrimSuffix(path.Base(file), packedModule)) {
				continue
			}
			if err := loadModule(file); err != nil {
				return fmt.Errorf("load module %s: %w", file, err)
			}
		}
	}
	return lines.Err()
}

// isLoaded says whether a module is loaded already, so that it need not be unpacked. Most
// dependencies of a module are loaded. A module that is being loaded counts as not loaded:
// loading it again waits until it is.
func isLoaded(name string) bool {
	state, err := os.ReadFile(path.Join("/sys/module", name, "initstate"))
	return err == nil && string(state) == "live\n"
}

// initPacked loads a module that is stored compressed in the initramfs.
func initPacked(f *os.File) error {
	unpacked, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	module, err := io.ReadAll(io.LimitReader(unpacked, maxModule))
	if err != nil {
		return err
	}
	return unix.InitModule(module, "")
}
