package main

import (
	"context"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/huskvm/husk/protocol"
)

// Bounds of the entropy that the host may give in one call, in bytes.
const (
	minEntropy = 32
	maxEntropy = 4096
)

// Hello sets the clock, adds the host's entropy to the kernel's generator, and returns a
// description of this guest. It comes before any process of a container runs.
func (a *agent) Hello(_ context.Context, r *protocol.HelloRequest) (*protocol.HelloResponse, error) {
	if n := len(r.Entropy); n < minEntropy || n > maxEntropy {
		return nil, status.Errorf(codes.InvalidArgument, "entropy has %d bytes, want %d to %d", n, minEntropy, maxEntropy)
	}
	if err := a.machine.addEntropy(r.Entropy); err != nil {
		return nil, err
	}
	if err := a.machine.setClock(r.UnixNanos); err != nil {
		return nil, err
	}
	return a.self, nil
}

// describe returns what this guest is. It does not change while the guest runs.
func describe() (*protocol.HelloResponse, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	return &protocol.HelloResponse{
		KernelRelease: unix.ByteSliceToString(uts.Release[:]),
		Hypervisor:    hypervisorVendor(),
	}, nil
}

func setClock(unixNanos int64) error {
	ts := unix.NsecToTimespec(unixNanos)
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set clock: %w", err)
	}
	return nil
}

// generator is the open kernel random number generator. It stays open as long as the guest
// lives, because each clone would have to open it again.
type generator int

func openGenerator() (generator, error) {
	fd, err := unix.Open("/dev/random", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open random number generator: %w", err)
	}
	return generator(fd), nil
}

// addEntropy credits the bytes and makes the kernel use them at once, because all clones of a
// template wake up with the same generator state.
func (g generator) addEntropy(entropy []byte) error {
	// struct rand_pool_info
	var pool struct {
		bits, size int32
		buf        [maxEntropy]byte
	}
	pool.size = int32(copy(pool.buf[:], entropy))
	pool.bits = pool.size * 8
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(g), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&pool))); errno != 0 {
		return fmt.Errorf("add entropy: %w", errno)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(g), unix.RNDRESEEDCRNG, 0); errno != 0 {
		return fmt.Errorf("reseed random number generator: %w", errno)
	}
	return nil
}
