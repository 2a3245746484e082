package names

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/protocol"
)

// divert is three BPF programs attached to a cgroup. Netfilter could do the same, but would
// need four more modules in the guest, and the container would see its rules.
type divert struct {
	cgroup   *os.File
	attached []attachment
}

type attachment struct {
	program *os.File
	point   uint32
}

const dnsPort = 53

// divertTo redirects what processes of the cgroup send to port 53 of ResolverAddress to another
// port there. Answers seem to come from port 53.
func divertTo(cgroupDir string, port uint16) (*divert, error) {
	cgroup, err := os.Open(cgroupDir)
	if err != nil {
		return nil, err
	}
	d := &divert{cgroup: cgroup}
	for _, hook := range []struct {
		point    uint32
		from, to uint16
	}{
		{unix.BPF_CGROUP_INET4_CONNECT, dnsPort, port},
		{unix.BPF_CGROUP_UDP4_SENDMSG, dnsPort, port},
		{unix.BPF_CGROUP_UDP4_RECVMSG, port, dnsPort},
	} {
		if err := d.attach(hook.point, changePort(hook.from, hook.to)); err != nil {
			return nil, errors.Join(fmt.Errorf("divert port %d (the guest's kernel needs CONFIG_CGROUP_BPF): %w", dnsPort, err), d.close())
		}
	}
	return d, nil
}

// close detaches the programs. Without it they would stay as long as the cgroup.
func (d *divert) close() error {
	var errs []error
	for _, a := range d.attached {
		_, err := bpf(unix.BPF_PROG_DETACH, &attachAttr{targetFD: uint32(d.cgroup.Fd()), programFD: uint32(a.program.Fd()), point: a.point})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("detach: %w", err))
		}
		errs = append(errs, a.program.Close())
	}
	d.attached = nil
	return errors.Join(append(errs, d.cgroup.Close())...)
}

// instruction is struct bpf_insn.
type instruction struct {
	code   uint8
	regs   uint8 // source << 4 | destination
	offset int16
	value  int32
}

// Offsets in struct bpf_sock_addr (linux/bpf.h); both fields are in network order.
const (
	userIP4  = 4
	userPort = 24
)

// changePort returns a program that changes the port in a struct bpf_sock_addr from one number
// to another if the address is ResolverAddress. It always allows the call.
func changePort(from, to uint16) []instruction {
	address := int32(binary.NativeEndian.Uint32(net.ParseIP(protocol.ResolverAddress).To4()))
	load := uint8(unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W)
	unequal := uint8(unix.BPF_JMP | unix.BPF_JNE | unix.BPF_K)
	move := uint8(unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K)
	return []instruction{
		{load, 1<<4 | 2, userIP4, 0},
		{unequal, 2, 4, address},
		{load, 1<<4 | 2, userPort, 0},
		{unequal, 2, 2, networkOrder(from)},
		{move, 2, 0, networkOrder(to)},
		{unix.BPF_STX | unix.BPF_MEM | unix.BPF_W, 2<<4 | 1, userPort, 0},
		{move, 0, 0, 1},
		{unix.BPF_JMP | unix.BPF_EXIT, 0, 0, 0},
	}
}

func networkOrder(port uint16) int32 {
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		port = bits.ReverseBytes16(port)
	}
	return int32(port)
}

// loadAttr and attachAttr are the first fields of union bpf_attr.
type loadAttr struct {
	kind         uint32
	count        uint32
	instructions uint64
	license      uint64
	_            [44]byte // log, version, flags, name and interface
	point        uint32
}

type attachAttr struct {
	targetFD, programFD, point, flags uint32
}

func (d *divert) attach(point uint32, program []instruction) error {
	license := []byte("Apache-2.0\x00")
	// The kernel follows the addresses in attr. The garbage collector does not know them, so
	// the memory is pinned.
	var pins runtime.Pinner
	defer pins.Unpin()
	pins.Pin(&program[0])
	pins.Pin(&license[0])
	attr := &loadAttr{
		kind: unix.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, count: uint32(len(program)), point: point,
		instructions: uint64(uintptr(unsafe.Pointer(&program[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0]))),
	}
	fd, err := bpf(unix.BPF_PROG_LOAD, attr)
	if err != nil {
		return fmt.Errorf("load program: %w", err)
	}
	f := os.NewFile(fd, "bpf program")
	// The container may be allowed to attach programs of its own, which then run as well.
	_, err = bpf(unix.BPF_PROG_ATTACH, &attachAttr{
		targetFD: uint32(d.cgroup.Fd()), programFD: uint32(fd), point: point, flags: unix.BPF_F_ALLOW_MULTI,
	})
	if err != nil {
		return errors.Join(fmt.Errorf("attach program: %w", err), f.Close())
	}
	d.attached = append(d.attached, attachment{f, point})
	return nil
}

func bpf[A any](command int, attr *A) (uintptr, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(unsafe.Pointer(attr)), unsafe.Sizeof(*attr))
	if errno != 0 {
		return 0, errno
	}
	return fd, nil
}
