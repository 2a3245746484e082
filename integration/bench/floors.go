package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cavaliergopher/cpio"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/syscalls"
)

// floorName is the subject of what bare QEMU needs. No runtime that uses QEMU in the same way
// can be faster.
const floorName = "bare qemu"

// vmArgs is the command line of a VM that husk has started from a template.
type vmArgs struct{ argv []string }

// huskVM starts a container and returns its VM's command line.
func (b *bench) huskVM() (*vmArgs, error) {
	r, id := b.runtimes[0], b.id()
	if err := r.call("run", "--detach", "--bundle", b.bundle("sleep 1000"), id); err != nil {
		return nil, err
	}
	defer func() { _ = r.call("delete", "--force", id) }()
	pid, err := r.pid(id)
	if err != nil {
		return nil, err
	}
	for _, p := range descendants(pid) {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p))
		if err != nil {
			continue
		}
		argv := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
		if slices.Contains(argv, "-accel") {
			vm := &vmArgs{argv: argv}
			if vm.value("-incoming") == "" {
				return nil, errors.New("husk's VM was not started from a template")
			}
			return vm, nil
		}
	}
	return nil, errors.New("husk's VM was not found below its supervisor")
}

// value returns the argument after a flag, "" without the flag.
func (v *vmArgs) value(flag string) string {
	if i := slices.Index(v.argv, flag); i >= 0 && i+1 < len(v.argv) {
		return v.argv[i+1]
	}
	return ""
}

// property returns the value of a key in an option such as "tap,id=net0,fd=6".
func property(option, key string) string {
	for part := range strings.SplitSeq(option, ",") {
		if name, value, ok := strings.Cut(part, "="); ok && name == key {
			return value
		}
	}
	return ""
}

// boot runs the same kernel on the same machine until its init ends.
func (v *vmArgs) boot(initrd string) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, v.argv[0],
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "microvm",
		"-accel", v.value("-accel"), "-cpu", v.value("-cpu"), "-m", v.value("-m"), "-smp", v.value("-smp"),
		"-kernel", v.value("-kernel"), "-initrd", initrd, "-append", v.value("-append"),
		"-serial", "stdio")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if !bytes.Contains(out, []byte("floor ready")) {
		return fmt.Errorf("init did not run: %s", out)
	}
	return nil
}

// writeFloorInitrd writes an initramfs that contains only testprog, as its init.
func writeFloorInitrd(path, prog string) error {
	program, err := os.ReadFile(prog)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := cpio.NewWriter(f)
	for _, e := range []struct {
		name string
		mode cpio.FileMode
		data []byte
	}{
		{"dev", cpio.TypeDir | 0o755, nil},
		{"init", cpio.TypeReg | 0o755, program},
	} {
		err = errors.Join(err, w.WriteHeader(&cpio.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.data))}))
		if err == nil {
			_, err = w.Write(e.data)
		}
	}
	return errors.Join(err, w.Close(), f.Close())
}

// restore wakes up a clone with nothing but QEMU, greets its agent, and returns the time from
// starting QEMU to the agent's answer.
func (v *vmArgs) restore(dir string) (took time.Duration, err error) {
	share, err := os.MkdirTemp(dir, "share-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.Remove(share)) }()
	argv, files, conns, err := v.cloneArgs(share)
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.ExtraFiles = files
	var said bytes.Buffer
	cmd.Stderr = &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, said.String())
		}
	}()
	deadline := time.Now().Add(time.Minute)
	for _, c := range conns {
		if err := c.SetDeadline(deadline); err != nil {
			return 0, err
		}
	}
	devices := filepath.Join(filepath.Dir(property(v.value("-object"), "mem-path")), "devices")
	if err := wake(conns[0], devices); err != nil {
		return 0, err
	}
	// The agent answers a greeting before it checks it.
	if _, err := io.WriteString(conns[2], "husk/1 bench\n"); err != nil {
		return 0, err
	}
	answer, err := bufio.NewReader(conns[2]).ReadString('\n')
	if err == nil && !strings.HasPrefix(answer, "husk/") {
		err = fmt.Errorf("the agent answered %q", answer)
	}
	return time.Since(began), err
}

// cloneArgs returns the command line with descriptors of this process: QMP, console and agent
// channel in husk's order, then a tap for each card.
func (v *vmArgs) cloneArgs(share string) (argv []string, files []*os.File, conns []*net.UnixConn, err error) {
	argv = slices.Clone(v.argv)
	for i, arg := range argv {
		switch {
		case strings.HasPrefix(arg, "local,id=share,"):
			argv[i] = strings.Replace(arg, "path="+property(arg, "path"), "path="+share, 1)
		case strings.HasPrefix(arg, "vhost-vsock-device"):
			return nil, nil, nil, errors.New("the restore floor is measured over virtio-serial: set vsock to off")
		}
	}
	for range 3 {
		ours, theirs, err := syscalls.SocketPairConn("channel")
		if err != nil {
			return nil, files, conns, err
		}
		files, conns = append(files, theirs), append(conns, ours)
	}
	for i, arg := range argv {
		if i > 0 && argv[i-1] == "-netdev" && strings.HasPrefix(arg, "tap,") {
			tap, err := openTap()
			if err != nil {
				return nil, files, conns, err
			}
			files = append(files, tap)
		}
	}
	return argv, files, conns, nil
}

// openTap makes a tap in a new network namespace, which ends with the tap.
func openTap() (tap *os.File, err error) {
	err = onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		tap, err = openTapHere()
		return err
	})
	return tap, err
}

// openTapHere makes a tap in the thread's network namespace with the same options as husk's.
func openTapHere() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	req, err := unix.NewIfreq("tap%d")
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make tap: %w", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "tap"), nil
}

// wake sends the QMP commands that resume a clone.
func wake(conn *net.UnixConn, devices string) error {
	r := bufio.NewReader(conn)
	await := func(what string) error {
		for {
			line, err := r.ReadBytes('\n')
			if err != nil {
				return err
			}
			if bytes.Contains(line, []byte(`"error"`)) {
				return fmt.Errorf("qmp: %s", line)
			}
			if bytes.Contains(line, []byte(what)) {
				return nil
			}
		}
	}
	execute := func(command string, args any, oob []byte) error {
		doc, err := json.Marshal(map[string]any{"execute": command, "arguments": args})
		if err != nil {
			return err
		}
		if _, _, err := conn.WriteMsgUnix(doc, oob, nil); err != nil {
			return err
		}
		return await(`"return"`)
	}
	state, err := os.Open(devices)
	if err != nil {
		return err
	}
	defer func() { _ = state.Close() }()
	none := map[string]any{}
	capabilities := []map[string]any{{"capability": "x-ignore-shared", "state": true}, {"capability": "events", "state": true}}
	if err := await(`"QMP"`); err != nil {
		return err
	}
	for _, c := range []struct {
		command string
		args    any
		oob     []byte
	}{
		{"qmp_capabilities", none, nil},
		{"migrate-set-capabilities", map[string]any{"capabilities": capabilities}, nil},
		{"getfd", map[string]any{"fdname": "state"}, unix.UnixRights(int(state.Fd()))},
		{"migrate-incoming", map[string]any{"uri": "fd:state"}, nil},
	} {
		if err := execute(c.command, c.args, c.oob); err != nil {
			return fmt.Errorf("%s: %w", c.command, err)
		}
	}
	if err := await(`"completed"`); err != nil {
		return err
	}
	return execute("cont", none, nil)
}
