package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// draws prints one draw of each source of randomness that a process has, and the clock.
func draws([]string) error {
	b := make([]byte, 16)
	if n, _, errno := syscall.Syscall(318, uintptr(unsafe.Pointer(&b[0])), 16, 0); n != 16 { // getrandom
		return fmt.Errorf("getrandom: %w", errno)
	}
	fmt.Printf("getrandom %x\n", b)
	f, err := os.Open("/dev/urandom")
	if err != nil {
		return err
	}
	if _, err := f.Read(b); err != nil {
		return err
	}
	fmt.Printf("urandom %x\n", b)
	random, err := atRandom()
	if err != nil {
		return err
	}
	fmt.Printf("at_random %x\n", random)
	for _, name := range []string{"boot_id", "uuid"} {
		text, err := os.ReadFile("/proc/sys/kernel/random/" + name)
		if err != nil {
			return err
		}
		fmt.Println(name, strings.TrimSpace(string(text)))
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(line, "[stack]\n") {
			fmt.Println("stack", strings.Fields(line)[0])
		}
	}
	fmt.Println("clock", time.Now().UnixNano())
	return nil
}

// atRandom returns the 16 bytes that the kernel gave this process at execve.
func atRandom() ([]byte, error) {
	auxv, err := os.ReadFile("/proc/self/auxv")
	if err != nil {
		return nil, err
	}
	const typeRandom = 25
	for ; len(auxv) >= 16; auxv = auxv[16:] {
		if binary.NativeEndian.Uint64(auxv) != typeRandom {
			continue
		}
		mem, err := os.Open("/proc/self/mem")
		if err != nil {
			return nil, err
		}
		b := make([]byte, 16)
		_, err = mem.ReadAt(b, int64(binary.NativeEndian.Uint64(auxv[8:])))
		return b, err
	}
	return nil, fmt.Errorf("no AT_RANDOM")
}
