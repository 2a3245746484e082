//go:build integration

package engines

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// root is the root filesystem in which an engine's programs run: the machine's own, or that of
// a newer Debian.
type root struct {
	enter []string // prefix of each command line; empty for the machine's own root
}

// machine returns the machine's own root.
func machine(*testing.T) *root { return &root{} }

// debian13 returns an overlay over the tree that debian.sh has made, in a mount namespace whose
// root it is. A chroot would not do, because runtimes need pivot_root. /tmp and the repository
// are at the same paths inside. It ends with the test.
func debian13(t *testing.T) *root {
	t.Helper()
	repository, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf(`set -eu
mount -t tmpfs tmpfs %[1]s
mkdir %[1]s/upper %[1]s/work %[1]s/root
mount -t overlay overlay -o lowerdir=%[2]s,upperdir=%[1]s/upper,workdir=%[1]s/work %[1]s/root
cd %[1]s/root
for d in /proc /sys /dev /tmp %[3]s; do
	mkdir -p .$d
	mount --rbind $d .$d
done
mount -t tmpfs tmpfs run
mkdir old
pivot_root . old
umount -l old
echo ready
exec sleep infinity
`, t.TempDir(), filepath.Join(outDir, "debian13"), repository)
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "bash", "-c", script)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("enter Debian 13: %q, %v", line, err)
	}
	return &root{enter: []string{"nsenter", fmt.Sprintf("--mount=/proc/%d/ns/mnt", cmd.Process.Pid), "--"}}
}

// command returns a command line that runs in the root.
func (r *root) command(args ...string) []string {
	return append(append([]string(nil), r.enter...), args...)
}

// shell runs a script that must succeed and returns what it prints.
func (r *root) shell(t *testing.T, script string) string {
	t.Helper()
	args := r.command("bash", "-c", script)
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

// unmountBelow unmounts what an engine has left mounted in its directory.
func (r *root) unmountBelow(t *testing.T, dir string) {
	t.Helper()
	r.shell(t, fmt.Sprintf(`awk -v d=%s/ 'index($5, d) == 1 {print $5}' /proc/self/mountinfo | tac | xargs -r -n 1 umount -l`, dir))
}
