//go:build integration

package kvm

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cavaliergopher/cpio"
)

// outerModules are the modules of the stock kernel that the outer machine needs: for the host's
// files, KVM with nested paging as TCG emulates it, vhost-vsock, and what husk needs on a host.
// Dependencies are added.
var outerModules = []string{
	"virtio_pci", "9p", "9pnet_virtio", "overlay",
	"kvm-amd", "vhost_vsock", "vhost_net", "tun", "veth", "sch_ingress", "cls_matchall", "act_mirred", "cls_u32", "cls_bpf", "act_gact",
}

// writeInitramfs writes the outer machine's initramfs: busybox, the modules in load order, the
// init script and the payload.
func writeInitramfs(path, modulesDir, initScript, payload string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buffered := bufio.NewWriterSize(f, 1<<20)
	w := cpio.NewWriter(buffered)
	add := func(name string, mode cpio.FileMode, data []byte) error {
		if err := w.WriteHeader(&cpio.Header{Name: name, Mode: mode, Size: int64(len(data))}); err != nil {
			return fmt.Errorf("add %s: %w", name, err)
		}
		_, err := w.Write(data)
		return err
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	order, err := loadOrder(modulesDir, outerModules)
	if err != nil {
		return err
	}
	var names []string
	err = errors.Join(
		add("bin", cpio.TypeDir|0o755, nil), add("modules", cpio.TypeDir|0o755, nil),
		add("bin/busybox", cpio.TypeReg|0o755, program), add("bin/sh", cpio.TypeReg|0o755, program),
		add("init", cpio.TypeReg|0o755, []byte(initScript)), add("payload.sh", cpio.TypeReg|0o755, []byte(payload)),
	)
	for _, module := range order {
		data, readErr := os.ReadFile(filepath.Join(modulesDir, module))
		name := filepath.Base(module)
		err = errors.Join(err, readErr, add("modules/"+name, cpio.TypeReg|0o644, data))
		names = append(names, name)
	}
	return errors.Join(err, add("modules.order", cpio.TypeReg|0o644, []byte(strings.Join(names, "\n")+"\n")),
		w.Close(), buffered.Flush(), f.Close())
}

// loadOrder returns the files of the modules and of their dependencies by modules.dep,
// dependencies first.
func loadOrder(modulesDir string, modules []string) ([]string, error) {
	f, err := os.Open(filepath.Join(modulesDir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	files, deps := map[string]string{}, map[string][]string{}
	lines := bufio.NewReader(f)
	for {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		file, needs, _ := strings.Cut(strings.TrimSpace(line), ":")
		name, _, _ := strings.Cut(filepath.Base(file), ".ko")
		files[strings.ReplaceAll(name, "-", "_")] = file
		deps[file] = strings.Fields(needs)
	}
	var order []string
	for _, name := range modules {
		file, ok := files[strings.ReplaceAll(name, "-", "_")]
		if !ok {
			return nil, fmt.Errorf("the kernel has no module %s", name)
		}
		// In a line of modules.dep the module to be loaded first comes last.
		for _, need := range slices.Backward(append([]string{file}, deps[file]...)) {
			if !slices.Contains(order, need) {
				order = append(order, need)
			}
		}
	}
	return order, nil
}
