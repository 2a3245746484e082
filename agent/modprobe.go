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
	// prober is where the guest room has put this program for the kernel to ask for
	// modules. It is not where kernels look for one, so nothing is asked during boot,
	// when each question would cost the time of a process.
	prober = "/lib/modules/modprobe"
	// proberSysctl tells the kernel (admin-guide/sysctl/kernel.rst).
	proberSysctl = "/proc/sys/kernel/modprobe"
	// aliasFile has a pattern and a name of demandFile's in each line.
	aliasFile = "/lib/modules/aliases"
	// packedModule ends the name of a module that is compressed.
	packedModule = ".ko.gz"
	// maxModule is the size of a module, in bytes, as the guest room allows it.
	maxModule = 64 << 20
)

// answerKernel has the kernel ask for what it lacks. One that loads no modules has
// nothing to set.
func answerKernel() error {
	err := os.WriteFile(proberSysctl, []byte(prober), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("have the kernel ask for modules: %w", err)
	}
	return nil
}

// isProber says whether the kernel has started this process to load a module.
func isProber() bool { return os.Args[0] == prober }

// probe loads what the kernel asks for in the words of modprobe: "-q -- NAME". Its
// exit code is all that the kernel looks at.
func probe() {
	names, err := modulesFor(aliasFile, os.Args[len(os.Args)-1])
	for _, name := range names {
		err = errors.Join(err, loadOnDemand(demandFile, name))
	}
	if err != nil {
		os.Exit(1)
	}
}

// modulesFor returns what name may mean: itself, and what it is an alias of.
func modulesFor(list, name string) ([]string, error) {
	f, err := os.Open(list)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	// To modprobe, and so to the kernel, the two signs are one.
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

// loadOnDemand loads the modules that list has for a name, which may be none.
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

// isLoaded spares the unpacking of what is there already, which most of what a module
// depends on is. One on its way in counts as not loaded: loading it waits for that.
func isLoaded(name string) bool {
	state, err := os.ReadFile(path.Join("/sys/module", name, "initstate"))
	return err == nil && string(state) == "live\n"
}

// initPacked loads a module that lies compressed in the initramfs.
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
