package main

import (
	"bytes"
	"log"
	"os"

	"golang.org/x/sys/unix"
)

// end ends the guest in the way that how names. It returns if how names no way.
func end(how string) {
	switch how {
	case "panic":
		_ = os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	case "exit":
		os.Exit(3) // the kernel panics because init has died
	case "reboot":
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case "poweroff":
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case "halt":
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_HALT)
	default:
		return
	}
	stop()
}

// stop waits for ever. With an empty select Go would notice that all goroutines wait, and end
// the program.
func stop() {
	for {
		_ = unix.Pause()
	}
}

// announce writes to the console, whose end the host shows, which mode is played.
func announce(how string) {
	if how != "" {
		log.Printf("plays %s", how)
	}
}

// escapes is text that must not reach a terminal.
const escapes = "mad\x1b]0;mad\x07\x1b[2J\x9b31m\u202e\u2028\r\b\x00\x7f"

// controls returns 255 bytes of control characters and invalid UTF-8.
func controls() string {
	b := make([]byte, 0, 255)
	for i := range 255 {
		b = append(b, [...]byte{0x1b, '[', 0x07, 0xff, 0xc2, 0x9b, 0x0d, byte(i % 32)}[i%8])
	}
	return string(b)
}

// floodConsole writes without end.
func floodConsole() {
	line := append(bytes.Repeat([]byte(escapes+"flood "), 200), '\n')
	for {
		if _, err := os.Stderr.Write(line); err != nil {
			return
		}
	}
}
