package main

import (
	"log"

	"golang.org/x/sys/unix"
)

// powerOff powers the guest off and does not return. The caller must have synced the
// filesystems.
func powerOff() {
	// Only as PID 1: in tests on a host it would power off the host.
	if unix.Getpid() != 1 {
		log.Fatal("refusing to power off: not PID 1")
	}
	for _, cmd := range []int{unix.LINUX_REBOOT_CMD_RESTART, unix.LINUX_REBOOT_CMD_POWER_OFF} {
		if err := unix.Reboot(cmd); err != nil {
			log.Printf("reboot: %v", err)
		}
	}
	select {}
}
