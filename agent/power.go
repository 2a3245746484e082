package main

import (
	"log"

	"golang.org/x/sys/unix"
)

// powerOff ends the guest and does not return. Filesystems must have been synced.
func powerOff() {
	// As PID 1 only: on a host this would be the host's end.
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
