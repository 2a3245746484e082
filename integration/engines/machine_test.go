//go:build integration

package engines

import (
	"archive/tar"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMachine runs Docker and podman with husk in a machine such as users have: with systemd,
// cgroup v2 and KVM. Here the whole machine is emulated. make machine makes its disk.
func TestMachine(t *testing.T) {
	dir := filepath.Join(outDir, "machine")
	if _, err := os.Stat(filepath.Join(dir, ".done")); err != nil {
		t.Skip("there is no machine: make machine makes it, and runs this")
	}
	payload := filepath.Join(t.TempDir(), "payload.tar")
	if err := writePayload(payload); err != nil {
		t.Fatal(err)
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	qemu := exec.Command("qemu-system-x86_64",
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-M", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "3500",
		"-kernel", path("vmlinuz"), "-initrd", path("initrd"),
		"-append", "root=/dev/vda rw console=ttyS0 quiet panic=-1 nokaslr mitigations=off",
		"-serial", "stdio", "-snapshot",
		"-drive", "format=raw,if=virtio,file="+path("disk"),
		"-drive", "format=raw,if=virtio,file="+payload,
		// Docker needs an interface with a route.
		"-nic", "user,model=virtio-net-pci,restrict=on")
	qemu.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	var text strings.Builder
	qemu.Stdout = io.MultiWriter(os.Stdout, &text)
	qemu.Stderr = os.Stderr
	if err := qemu.Run(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text.String(), "exit code 0") {
		t.Error("it did not end with exit code 0")
	}
}

// writePayload writes the archive that the machine unpacks.
func writePayload(to string) error {
	var script []byte
	for _, name := range []string{"prelude.sh", "machine.sh"} {
		b, err := os.ReadFile(filepath.Join("cases", name))
		if err != nil {
			return err
		}
		script = append(script, b...)
	}
	husk, err := os.ReadFile(huskPath)
	if err != nil {
		return err
	}
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for name, b := range map[string][]byte{"run.sh": script, "husk": husk} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(b))}); err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return w.Close()
}
