package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"syscall"
)

// frames sends Ethernet frames, given in hexadecimal, unchanged from an interface.
func frames(args []string) error {
	if len(args) < 2 {
		return errors.New("frames wants INTERFACE and one FRAME at least")
	}
	i, err := net.InterfaceByName(args[0])
	if err != nil {
		return err
	}
	fd, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW, 0)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	for _, text := range args[1:] {
		frame, err := hex.DecodeString(text)
		if err != nil {
			return err
		}
		if err := syscall.Sendto(fd, frame, 0, &syscall.SockaddrLinklayer{Ifindex: i.Index}); err != nil {
			return fmt.Errorf("send frame: %w", err)
		}
	}
	return syscall.Close(fd)
}
