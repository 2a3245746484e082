package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"
)

// guestVariable is in the environment of a bare guest's init, from the kernel's command line
// (TESTPROG=guest). testprog then serves commands instead of ending the guest at once.
const guestVariable = "TESTPROG"

// guestPort is the virtio-serial port on which commands come.
const guestPort = "org.huskvm.agent"

// guestInit is the init of a bare guest, which has nothing of husk: it loads the modules of the
// initramfs and runs testprog's commands. A command is a JSON array of words in one line, and
// its output goes to the port. After each comes a line "\nok" or "\nfailed: why".
func guestInit() {
	fmt.Println("testprog:", serveGuest())
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
}

// serveGuest returns the reason why it could not go on.
func serveGuest() error {
	for dir, kind := range map[string]string{"/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(kind, dir, kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	uevents, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return err
	}
	if err := syscall.Bind(uevents, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK, Groups: 1}); err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	port, err := openPort(uevents)
	if err != nil {
		return err
	}
	os.Stdout = port
	lines := bufio.NewReader(port)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return err
		}
		var words []string
		if err = json.Unmarshal(line, &words); err == nil {
			err = guestCommand(words)
		}
		answer := "\nok\n"
		if err != nil {
			answer = fmt.Sprintf("\nfailed: %v\n", err)
		}
		if _, err := io.WriteString(port, answer); err != nil {
			return err
		}
	}
}

func guestCommand(words []string) error {
	switch {
	case len(words) == 4 && words[0] == "mount": // mount TAG DIRECTORY OPTIONS
		if err := os.MkdirAll(words[2], 0o755); err != nil {
			return err
		}
		return syscall.Mount(words[1], words[2], "9p", 0, words[3])
	case len(words) == 2 && words[0] == "umount":
		return syscall.Unmount(words[1], 0)
	case len(words) == 1 && words[0] == "hello":
		return nil
	case len(words) == 2 && words[0] == "show":
		return show(words[1])
	case len(words) == 3 && words[0] == "write":
		return os.WriteFile(words[1], []byte(words[2]), 0o644)
	case len(words) == 3 && words[0] == "map":
		return writeMapped(words[1], words[2])
	case len(words) == 2 && words[0] == "chown":
		return os.Chown(words[1], 1234, 5678)
	case len(words) == 3 && words[0] == "address": // address INTERFACE CIDR
		return setAddress(words[1], words[2])
	case len(words) > 0 && commands[words[0]] != nil:
		return commands[words[0]](words[1:])
	}
	return fmt.Errorf("unknown command %q", words)
}

func loadModules() error {
	list, err := os.ReadFile("/lib/modules/load")
	if err != nil {
		return err
	}
	for path := range strings.FieldsSeq(string(list)) {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		const finitModule = 313
		none := []byte{0}
		_, _, errno := syscall.Syscall(finitModule, f.Fd(), uintptr(unsafe.Pointer(&none[0])), 0)
		_ = f.Close()
		if errno != 0 && errno != syscall.EEXIST {
			return fmt.Errorf("load %s: %w", path, errno)
		}
	}
	return nil
}

// openPort waits for the port, whose name appears some time after its driver.
func openPort(uevents int) (*os.File, error) {
	event := make([]byte, 8192)
	for {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err == nil && strings.TrimSpace(string(text)) == guestPort {
				// Blocking, because without a host an edge-triggered poll would return at once
				// for ever.
				fd, err := syscall.Open("/dev/"+filepath.Base(filepath.Dir(name)), syscall.O_RDWR|syscall.O_CLOEXEC, 0)
				if err != nil {
					return nil, err
				}
				return os.NewFile(uintptr(fd), "port"), nil
			}
		}
		if _, _, err := syscall.Recvfrom(uevents, event, 0); err != nil && !errors.Is(err, syscall.EINTR) {
			return nil, err
		}
	}
}

// setAddress gives an interface an IPv4 address and brings it up.
func setAddress(name, cidr string) error {
	ip, network, err := net.ParseCIDR(cidr)
	if err != nil {
		return err
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	set := func(request uintptr, fill func(value *[24]byte)) error {
		var ifreq struct {
			name  [16]byte
			value [24]byte
		}
		copy(ifreq.name[:15], name)
		fill(&ifreq.value)
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(&ifreq))); errno != 0 {
			return fmt.Errorf("set up %s: ioctl %#x: %w", name, request, errno)
		}
		return nil
	}
	inet := func(address net.IP) func(value *[24]byte) {
		return func(value *[24]byte) {
			value[0] = syscall.AF_INET
			copy(value[4:8], address.To4())
		}
	}
	return errors.Join(
		set(syscall.SIOCSIFADDR, inet(ip)),
		set(syscall.SIOCSIFNETMASK, inet(net.IP(network.Mask))),
		set(syscall.SIOCSIFFLAGS, func(value *[24]byte) { value[0] = syscall.IFF_UP | syscall.IFF_RUNNING }),
	)
}

// show prints a file's inode number and content.
func show(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	inode := st.Sys().(*syscall.Stat_t).Ino
	_, err = fmt.Printf("%d %s\n", inode, text)
	return err
}

// writeMapped writes text to the start of a file through a shared mapping.
func writeMapped(path, text string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	mapped, err := syscall.Mmap(int(f.Fd()), 0, len(text), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %s: %w", path, err)
	}
	copy(mapped, text)
	return errors.Join(syscall.Munmap(mapped), f.Sync())
}
