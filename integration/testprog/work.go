package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// zeros writes the given number of MiB of zeros to stdout.
func zeros(args []string) error {
	n, err := number(args, 0)
	if err != nil {
		return err
	}
	block := make([]byte, 1<<20)
	for range n {
		if _, err := os.Stdout.Write(block); err != nil {
			return err
		}
	}
	return nil
}

const (
	workMiB     = 64
	workPages   = 2000
	workEntries = 10000
)

// fileWork works on files in a directory and prints what rates it got, as JSON.
func fileWork(args []string) error {
	if len(args) != 1 {
		return errors.New("filework wants one directory")
	}
	dir, err := os.MkdirTemp(args[0], "work-")
	if err != nil {
		return err
	}
	name := filepath.Join(dir, "data")
	rates := map[string]float64{}
	note := func(what string, amount float64, f func() error) error {
		began := time.Now()
		if err := f(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		rates[what] = amount / time.Since(began).Seconds()
		return nil
	}
	err = errors.Join(
		note("sequential write", workMiB, func() error { return writeAll(name) }),
		note("sequential read", workMiB, func() error { return readAll(name) }),
		note("random 4 KiB reads and writes", 2*workPages, func() error { return randomPages(name) }),
		note("files created, read and removed", workEntries, func() error { return manyFiles(dir) }),
		os.Remove(name), os.Remove(dir),
	)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(rates)
}

func writeAll(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	block := make([]byte, 1<<20)
	for i := range workMiB {
		block[0] = byte(i)
		if _, err := f.Write(block); err != nil {
			return err
		}
	}
	return errors.Join(f.Sync(), f.Close())
}

func readAll(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	// Not from the reader's own cache.
	_, _, _ = syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), 0, 0, 4, 0, 0) // POSIX_FADV_DONTNEED
	block := make([]byte, 1<<20)
	for i := range workMiB {
		if _, err := f.ReadAt(block, int64(i)<<20); err != nil {
			return err
		}
		if block[0] != byte(i) {
			return fmt.Errorf("MiB %d begins with %d", i, block[0])
		}
	}
	return f.Close()
}

func randomPages(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	page := make([]byte, 4096)
	for i := range workPages {
		at := rand.Int64N(workMiB<<8) << 12
		page[0], page[1] = byte(i), byte(i>>8)
		if _, err := f.WriteAt(page, at); err != nil {
			return err
		}
		if _, err := f.ReadAt(page, at); err != nil {
			return err
		}
		if page[0] != byte(i) || page[1] != byte(i>>8) {
			return fmt.Errorf("page %d is not what was written", at>>12)
		}
	}
	return errors.Join(f.Sync(), f.Close())
}

func manyFiles(dir string) error {
	for i := range workEntries {
		name := filepath.Join(dir, strconv.Itoa(i))
		if err := os.WriteFile(name, []byte("x"), 0o644); err != nil {
			return err
		}
		st, err := os.Stat(name)
		if err != nil {
			return err
		}
		if st.Size() != 1 {
			return fmt.Errorf("%s has %d bytes", name, st.Size())
		}
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	return nil
}

// floorInit is the init of a bare guest: it says that it runs and ends the guest.
func floorInit() {
	if fd, err := syscall.Open("/dev/console", syscall.O_WRONLY, 0); err == nil {
		_, _ = syscall.Write(fd, []byte("floor ready\n"))
	} else if syscall.Mount("dev", "/dev", "devtmpfs", 0, "") == nil {
		if fd, err := syscall.Open("/dev/console", syscall.O_WRONLY, 0); err == nil {
			_, _ = syscall.Write(fd, []byte("floor ready\n"))
		}
	}
	// A reset: with -no-reboot the end of the process, as microvm has no power button.
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
}
