package main

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// uevents receives the kernel's device events. The guest has no udev. The agent uses the events
// only to learn when it has to look at /sys again.
type uevents struct{ fd int }

func openUevents() (*uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("open uevent socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("bind uevent socket: %w", err)
	}
	return &uevents{fd: fd}, nil
}

// wait returns nil when an event has come since the last wait. It returns an error after the
// deadline.
func (u *uevents) wait(deadline time.Time) error {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return errors.New("timed out")
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(u.fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if errors.Is(err, unix.EINTR) || (err == nil && n == 0) {
			continue
		}
		if err != nil {
			return fmt.Errorf("poll uevents: %w", err)
		}
		u.drain()
		return nil
	}
}

// drain discards the queue: one look at /sys covers all its events. ENOBUFS means that events
// were lost, which the look covers too.
func (u *uevents) drain() {
	b := make([]byte, 4096)
	for {
		_, _, err := unix.Recvfrom(u.fd, b, 0)
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

func (u *uevents) close() { _ = unix.Close(u.fd) }
