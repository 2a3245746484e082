// Command guest is the init of the guests in VM tests. It loads the modules of its initramfs
// and executes commands of one line each on the agent channel.
package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	fmt.Println("test guest is up")
	if err := run(); err != nil {
		fmt.Println("test guest failed:", err)
	}
	// Without a channel there is nothing to do; the reason is on the console.
	//nolint:errcheck // the kernel panics when its init returns, which ends the VM too.
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for _, fs := range []string{"proc", "sysfs", "devtmpfs"} {
		dir := map[string]string{"proc": "/proc", "sysfs": "/sys", "devtmpfs": "/dev"}[fs]
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(fs, dir, fs, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", fs, err)
		}
	}
	list, err := os.ReadFile("/lib/modules/load")
	if err != nil {
		return err
	}
	for path := range strings.FieldsSeq(string(list)) {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
			fmt.Println("load", path, err)
		}
	}
	port, err := openChannel()
	if err != nil {
		return err
	}
	fmt.Println("test guest is ready")
	lines := bufio.NewScanner(port)
	for lines.Scan() {
		verb, rest, _ := strings.Cut(lines.Text(), " ")
		if _, err := fmt.Fprintln(port, obey(verb, rest)); err != nil {
			return err
		}
	}
	return lines.Err()
}

func openChannel() (*os.File, error) {
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	for param := range strings.FieldsSeq(string(cmdline)) {
		if port, ok := strings.CutPrefix(param, "test.vsock="); ok {
			n, err := strconv.ParseUint(port, 10, 32)
			if err != nil {
				return nil, err
			}
			return acceptVsock(uint32(n))
		}
	}
	return openPort()
}

func acceptVsock(port uint32) (*os.File, error) {
	s, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(s)
	if err := unix.Bind(s, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err != nil {
		return nil, err
	}
	if err := unix.Listen(s, 1); err != nil {
		return nil, err
	}
	conn, _, err := unix.Accept(s)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(conn), "vsock"), nil
}

// openPort polls for the port. Waiting for events, as the real agent does, is not needed in
// tests.
func openPort() (*os.File, error) {
	for range 2000 {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if b, err := os.ReadFile(name); err == nil && len(strings.TrimSpace(string(b))) > 0 {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(name)), os.O_RDWR, 0)
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil, fmt.Errorf("no virtio port appeared")
}

func obey(verb, rest string) string {
	switch verb {
	case "echo":
		return rest
	case "mount": // TAG
		err := os.MkdirAll("/mnt", 0o755)
		if err == nil {
			err = unix.Mount(rest, "/mnt", "9p", 0, "trans=virtio,version=9p2000.L,msize=262144,access=client,cache=none")
		}
		return fmt.Sprint(err)
	case "read":
		b, err := os.ReadFile(rest)
		if err != nil {
			return err.Error()
		}
		return strings.TrimSpace(string(b))
	case "make": // PATH: makes a file of each kind, with modes that a umask would change
		unix.Umask(0)
		return fmt.Sprint(
			os.WriteFile(rest, []byte("from the guest"), 0o666), unix.Chown(rest, 1234, 5678),
			os.Mkdir(rest+".dir", 0o777), os.Symlink("target", rest+".link"),
		)
	case "fifo": // PATH
		unix.Umask(0)
		return fmt.Sprint(unix.Mknod(rest, unix.S_IFIFO|0o666, 0))
	case "nics":
		var nics []string
		dirs, _ := filepath.Glob("/sys/class/net/*/address")
		for _, path := range dirs {
			mac, _ := os.ReadFile(path)
			nics = append(nics, filepath.Base(filepath.Dir(path))+"="+strings.TrimSpace(string(mac)))
		}
		return strings.Join(nics, " ")
	case "up": // NAME: brings a link up, on which its kernel then sends router solicitations
		return fmt.Sprint(setUp(rest))
	case "print":
		fmt.Println(rest)
		return "printed"
	case "flood": // writes 200 KiB to the console
		for range 200 {
			fmt.Println(strings.Repeat("x", 1023))
		}
		return "flooded"
	case "crash":
		return fmt.Sprint(os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0))
	case "poweroff":
		return fmt.Sprint(unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
	}
	return "what is " + verb
}

func setUp(name string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr)
}
