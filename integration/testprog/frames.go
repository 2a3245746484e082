package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"syscall"
)

// frames sends Ethernet frames, given in hexadecimal, unchanged from an interface.
func frames(args []string) error { return sendFrames(args, false) }

// offloadedFrames sends frames that begin with a struct virtio_net_hdr, which asks the card for
// work on the frame.
func offloadedFrames(args []string) error { return sendFrames(args, true) }

func sendFrames(args []string, offloaded bool) error {
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
	if offloaded {
		const packetVnetHdr = 15 // PACKET_VNET_HDR of linux/if_packet.h
		if err := syscall.SetsockoptInt(fd, syscall.SOL_PACKET, packetVnetHdr, 1); err != nil {
			return fmt.Errorf("packet socket with offloads: %w", err)
		}
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
