//go:build integration

package integration

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// needVsock skips a test of a VM's vsock where husk does not use one.
func needVsock(t *testing.T) {
	t.Helper()
	needVM(t)
	if _, err := os.Stat("/dev/vhost-vsock"); err != nil {
		t.Skipf("no VM has a vsock device here: %v (make test-kvm has them)", err)
	}
}

// TestVsockTakesNoOrders: every process of the host can dial a guest's vsock and read its cid.
// Only the supervisor gets a byte from the agent: no other process does at the moment when the
// agent's port is open, or later, whatever it sends.
func TestVsockTakesNoOrders(t *testing.T) {
	needVsock(t)
	e := newEnv(t)
	bundle := e.bundle(withArgs("sleep", "1000"))
	e.ok("run", "--bundle", e.bundle(), e.id()) // it makes the template if there is none

	nobody, root := e.nobodyKnocks(), e.plainContainerKnocks()
	c := e.createStarted(bundle)
	if r := c.exec("echo", "undisturbed").is(0); r.stdout != "undisturbed\n" {
		t.Errorf("exec says %q", r.stdout)
	}
	nobody.end("uid 65534 while the container started")
	root.end("a plain container while the container started")

	vmm := e.vmm()
	cid := match(t, describe(vmm), `guest-cid=(\d+)`)
	// This container's own secret, which has been used.
	secret := "KNOCK_SECRET=" + hex.EncodeToString(findSecret(t, vmm, cid))
	refused := func(who, out string) {
		t.Helper()
		if !strings.Contains(out, "secret from any port: ") {
			t.Errorf("%s did not knock:\n%s", who, out)
		}
		if strings.Contains(out, "answered") || strings.Contains(out, "connected") {
			t.Errorf("%s was let in:\n%s", who, out)
		}
	}
	cmd := e.nobody("knock", cid)
	cmd.Env = []string{secret}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("knock: %v", err)
	}
	refused("uid 65534", string(out))
	if !strings.Contains(string(out), "reserved port: bind: permission denied") {
		t.Errorf("uid 65534 may bind a reserved port:\n%s", out)
	}
	refused("a plain container", e.plainContainer(secret, "knock", cid))
	// By the loopback of vsock, by the guest's own cid, and by the host's.
	refused("a process in the container", e.ok("exec", "--env", secret, c.id, "testprog", "knock", "1", cid, "2"))
	c.stop()
}

// TestTemplateHoldsNoSecret: a template does not contain what the host tells agents, because
// its agent was told nothing.
func TestTemplateHoldsNoSecret(t *testing.T) {
	needVsock(t)
	e := newEnv(t)
	c := e.createStarted(e.bundle(withArgs("sleep", "1000")))
	vmm := e.vmm()
	line := describe(vmm)
	// That the secret is found here shows that the search works.
	secret := findSecret(t, vmm, match(t, line, `guest-cid=(\d+)`))
	ram, err := os.Open(match(t, line, `mem-path=([^, ]+)`))
	if err != nil {
		t.Fatal(err)
	}
	defer ram.Close()
	where := io.NewSectionReader(ram, 0, 1<<62)
	for what, find := range map[string]func([]byte) int{
		"secret":   func(b []byte) int { return bytes.Index(b, secret) },
		"greeting": greetingIn,
	} {
		if at := search(t, where, find); at >= 0 {
			t.Errorf("the template's RAM holds a %s at %#x", what, at)
		}
	}
	for _, pid := range []int{vmm, c.pid} {
		for _, file := range []string{"cmdline", "environ"} {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(text, secret) || strings.Contains(string(text), hex.EncodeToString(secret)) {
				t.Errorf("%s of process %d holds the secret: %q", file, pid, text)
			}
		}
	}
	c.stop()
}

func (e *env) vmm() int {
	e.t.Helper()
	vmms := e.vmms()
	if len(vmms) != 1 {
		e.t.Fatalf("vmm processes: %v", vmms)
	}
	return vmms[0]
}

func match(t *testing.T, text, pattern string) string {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no %s in %q", pattern, text)
	}
	return m[1]
}

// nobody returns a command that runs testprog as a user without rights.
func (e *env) nobody(args ...string) *exec.Cmd {
	e.t.Helper()
	prog := e.path("testprog")
	if err := copyFile(filepath.Join(assetsDir, "rootfs/bin/testprog"), prog, 0o755); err != nil {
		e.t.Fatal(err)
	}
	if err := os.Chmod(e.dir, 0o711); err != nil {
		e.t.Fatal(err)
	}
	cmd := exec.Command(prog, args...)
	cmd.Env = []string{}
	cmd.SysProcAttr = &unix.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	return cmd
}

// knocker is a stranger who knocks at the port of every agent until end is called.
type knocker struct {
	e     *env
	cmd   *exec.Cmd
	stdin io.Closer
	out   *stream
}

func (e *env) knocks(cmd *exec.Cmd) *knocker {
	e.t.Helper()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		e.t.Fatal(err)
	}
	r, w := e.osPipe()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	w.Close()
	k := &knocker{e: e, cmd: cmd, stdin: stdin, out: newStream(r)}
	k.out.expect(e.t, "knocking\n")
	return k
}

func (e *env) nobodyKnocks() *knocker         { return e.knocks(e.nobody("knock")) }
func (e *env) plainContainerKnocks() *knocker { return e.knocks(e.plain("", "knock")) }

// end checks that the stranger has knocked and got nothing.
func (k *knocker) end(who string) {
	k.e.t.Helper()
	k.stdin.Close()
	if err := k.cmd.Wait(); err != nil {
		k.e.t.Errorf("%s: %v", who, err)
	}
	if err := k.out.waitEOF(testTimeout); err != nil {
		k.e.t.Error(err)
	}
	out := k.out.String()
	k.e.t.Logf("%s:\n%s", who, out)
	if !strings.Contains(out, "header from any port: ") {
		k.e.t.Errorf("%s did not knock", who)
	}
	if strings.Contains(out, "answered") {
		k.e.t.Errorf("%s was answered", who)
	}
}

// plain returns a command that runs testprog as root in a container of runc's, with the default
// capabilities of engines, in which the host's processes are visible.
func (e *env) plain(env string, args ...string) *exec.Cmd {
	e.t.Helper()
	bundle := e.bundle(withArgs(append([]string{"testprog"}, args...)...), withoutNamespace(specs.PIDNamespace), func(s *specs.Spec) {
		if env != "" {
			s.Process.Env = append(s.Process.Env, env)
		}
	})
	return exec.Command("runc", "--root", e.mkdir("runc"), "run", "--bundle", bundle, e.id())
}

func (e *env) plainContainer(env string, args ...string) string {
	e.t.Helper()
	out, err := e.plain(env, args...).CombinedOutput()
	if err != nil {
		e.t.Errorf("runc run: %v\n%s", err, out)
	}
	return string(out)
}

// greeting is the line that husk sends first; its agent is recognized by the build.
var greeting = regexp.MustCompile(`husk/[0-9]+ [0-9a-f]{16}\n`)

func greetingIn(b []byte) int {
	if at := greeting.FindIndex(b); at != nil {
		return at[0]
	}
	return -1
}

// findSecret finds the secret of the agent in the VM's memory: it follows the greeting and the
// cid.
func findSecret(t *testing.T, vmm int, cid string) []byte {
	t.Helper()
	n, err := strconv.ParseUint(cid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", vmm))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	var secret []byte
	find := func(b []byte) int {
		for _, at := range greeting.FindAllIndex(b, -1) {
			if rest := b[at[1]:]; len(rest) >= 4+32 && uint64(binary.BigEndian.Uint32(rest)) == n {
				secret = bytes.Clone(rest[4 : 4+32])
				return at[0]
			}
		}
		return -1
	}
	for line := range strings.Lines(readFile(t, fmt.Sprintf("/proc/%d/maps", vmm))) {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "rw-p") {
			continue
		}
		if search(t, io.NewSectionReader(mem, from, to-from), find) >= 0 {
			return secret
		}
	}
	t.Fatalf("no greeting with cid %s in the memory of the VM", cid)
	return nil
}

// search returns the offset of what find finds first in r, which is at most overlap bytes long;
// -1 if it finds nothing.
func search(t *testing.T, r *io.SectionReader, find func([]byte) int) int64 {
	t.Helper()
	const step, overlap = 1 << 20, 256
	b := make([]byte, step+overlap)
	for at := int64(0); ; at += step {
		n, err := r.ReadAt(b, at)
		if i := find(b[:n]); i >= 0 {
			return at + int64(i)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.EIO) {
			return -1
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestSocketsOfAContainer: a running container listens only on two sockets of the host, which
// only root can reach, and on no port, abstract name or vsock port.
func TestSocketsOfAContainer(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	// An engine's umask may have any value.
	c := e.createWith(call{via: []string{"sh", "-c", `umask 0; exec "$@"`, "sh"}}, e.bundle(withArgs("sleep", "1000")))
	e.ok("start", c.id)
	p := e.start(call{}, "exec", c.id, "sh", "-c", "echo up; sleep 1000")
	p.stdout.expect(t, "up\n")
	var listening []string
	seen := 0
	for pid := range e.processes() {
		for _, s := range socketsOf(t, pid) {
			seen++
			if s.listens {
				listening = append(listening, s.own)
			} else if strings.HasPrefix(s.own, "unix @") || strings.HasPrefix(s.own, "inet") {
				t.Errorf("process %d (%s) is bound to %s", pid, describe(pid), s.own)
			}
		}
	}
	slices.Sort(listening)
	if len(listening) != 2 || !strings.HasSuffix(listening[0], "/control.sock") || !strings.HasSuffix(listening[1], "/stream.sock") || seen < 4 {
		t.Errorf("of %d sockets these listen: %q", seen, listening)
	}
	for path, want := range map[string]os.FileMode{"": os.ModeDir | 0o700, "control.sock": os.ModeSocket | 0o600, "stream.sock": os.ModeSocket | 0o600} {
		info, err := os.Stat(filepath.Join(e.root, c.id, path))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want || info.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("%q is %v of uid %d, want %v of root", path, info.Mode(), info.Sys().(*syscall.Stat_t).Uid, want)
		}
	}
	c.stop()
	p.code()
}

// socket is a socket of a process, by its addresses.
type socket struct {
	own, peer string
	listens   bool
}

// socketsOf returns the sockets of a process.
func socketsOf(t *testing.T, pid int) []socket {
	t.Helper()
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	var found []socket
	for _, entry := range fds {
		n, _ := strconv.Atoi(entry.Name())
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if err != nil {
			continue // it has closed it
		}
		if listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil {
			own, _ := unix.Getsockname(fd)
			peer, _ := unix.Getpeername(fd)
			found = append(found, socket{own: address(own), peer: address(peer), listens: listens == 1})
		}
		unix.Close(fd)
	}
	return found
}

func address(a unix.Sockaddr) string {
	switch a := a.(type) {
	case *unix.SockaddrUnix:
		if a.Name == "@" { // none: an abstract one goes on
			return "unix"
		}
		return "unix " + a.Name
	case *unix.SockaddrVM:
		return fmt.Sprintf("vsock %d %d", a.CID, a.Port)
	case *unix.SockaddrInet4, *unix.SockaddrInet6:
		return fmt.Sprintf("inet %v", a)
	}
	return fmt.Sprintf("%T", a)
}
