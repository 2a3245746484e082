package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// The work is divided into equal pieces, each of which is a sample.
const (
	workMiB   = 4   // written, then read
	workPages = 100 // read and written
	workFiles = 500
	netMiB    = 8 // in each direction
	netRounds = 100
	pageSize  = 4096 // bytes
)

// work is the number of pieces, and the rates of each, per second.
type work struct {
	samples int
	rates   map[string][]float64
}

// newWork takes the number of samples from the second argument.
func newWork(args []string) (*work, error) {
	if len(args) != 2 {
		return nil, errors.New("wants two arguments, the second the number of samples")
	}
	n, err := number(args, 1)
	return &work{samples: n, rates: map[string][]float64{}}, err
}

func (w *work) note(what string, amount float64, f func() error) error {
	began := time.Now()
	if err := f(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	w.rates[what] = append(w.rates[what], amount/time.Since(began).Seconds())
	return nil
}

func (w *work) print() error { return json.NewEncoder(os.Stdout).Encode(w.rates) }

// fileWork works on files in a directory and prints the rates as JSON. Everything that it reads
// is checked.
func fileWork(args []string) error {
	w, err := newWork(args)
	if err != nil {
		return fmt.Errorf("filework DIRECTORY SAMPLES: %w", err)
	}
	dir, err := os.MkdirTemp(args[0], "work-")
	if err != nil {
		return err
	}
	data := filepath.Join(dir, "data")
	err = errors.Join(w.sequential(data), w.pages(data), w.files(dir), os.RemoveAll(dir))
	if err != nil {
		return err
	}
	return w.print()
}

// fill makes a block that cannot be compressed or deduplicated.
func fill(block []byte, seed byte) {
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(block) // never fails
}

func (w *work) sequential(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	fill(block, 1)
	sum := sha256.New()
	for i := range w.samples {
		block[0] = byte(i)
		for range workMiB {
			sum.Write(block)
		}
		err := w.note("sequential write, MiB/s", workMiB, func() error {
			for range workMiB {
				if _, err := f.Write(block); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	// The guest's own cached pages are dropped, because they are not to be measured.
	if _, _, errno := syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), 0, 0, 4, 0, 0); errno != 0 { // POSIX_FADV_DONTNEED
		return errno
	}
	read := sha256.New()
	data := make([]byte, workMiB<<20)
	for range w.samples {
		err := w.note("sequential read, MiB/s", workMiB, func() error {
			for i := range workMiB {
				if _, err := io.ReadFull(f, data[i<<20:(i+1)<<20]); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		read.Write(data)
	}
	if !bytes.Equal(sum.Sum(nil), read.Sum(nil)) {
		return errors.New("sequential read: not what was written")
	}
	return nil
}

func (w *work) pages(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	page, got := make([]byte, pageSize), make([]byte, pageSize)
	fill(page, 2)
	size := int64(w.samples * workMiB << 20 / pageSize)
	for range w.samples {
		at := make([]int64, workPages)
		for i := range at {
			at[i] = rand.Int64N(size) * pageSize
		}
		err := w.note("random 4 KiB writes, /s", workPages, func() error {
			for _, offset := range at {
				if _, err := f.WriteAt(page, offset); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		err = w.note("random 4 KiB reads, /s", workPages, func() error {
			for _, offset := range at {
				if _, err := f.ReadAt(got, offset); err != nil {
					return err
				}
				if !bytes.Equal(page, got) {
					return fmt.Errorf("at %d: not what was written", offset)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *work) files(dir string) error {
	for sample := range w.samples {
		name := func(i int) string { return filepath.Join(dir, strconv.Itoa(sample*workFiles+i)) }
		for _, step := range []struct {
			what string
			f    func(i int) error
		}{
			{"files created, /s", func(i int) error { return os.WriteFile(name(i), []byte("x"), 0o644) }},
			{"files looked up (stat), /s", func(i int) error {
				st, err := os.Stat(name(i))
				if err == nil && st.Size() != 1 {
					err = fmt.Errorf("%s has %d bytes", name(i), st.Size())
				}
				return err
			}},
			{"files removed, /s", func(i int) error { return os.Remove(name(i)) }},
		} {
			err := w.note(step.what, workFiles, func() error {
				for i := range workFiles {
					if err := step.f(i); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// netWork talks to the benchmark's peer and prints the rates as JSON.
func netWork(args []string) error {
	w, err := newWork(args)
	if err != nil {
		return fmt.Errorf("network ADDRESS SAMPLES: %w", err)
	}
	c, err := net.DialTimeout("tcp", args[0], 20*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Minute)); err != nil {
		return err
	}
	block, got := make([]byte, 1<<20), make([]byte, 1<<20)
	fill(block, 3)
	for range w.samples {
		// The peer confirms what it has read with a byte, and later sends all of it back.
		err := w.note("TCP out, MiB/s", netMiB, func() error {
			for range netMiB {
				if _, err := c.Write(block); err != nil {
					return err
				}
			}
			_, err := io.ReadFull(c, got[:1])
			return err
		})
		if err != nil {
			return err
		}
		err = w.note("TCP in, MiB/s", netMiB, func() error {
			for range netMiB {
				if _, err := io.ReadFull(c, got); err != nil {
					return err
				}
				if !bytes.Equal(block, got) {
					return errors.New("not what was sent")
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		err = w.note("TCP round trips, /s", netRounds, func() error {
			for range netRounds {
				if _, err := c.Write(block[:1]); err != nil {
					return err
				}
				if _, err := io.ReadFull(c, got[:1]); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return w.print()
}

// blocks writes the given number of MiB to stdout. Each block begins with its number; the rest
// is the same, so that making it costs no time.
func blocks(args []string) error {
	n, err := number(args, 0)
	if err != nil {
		return err
	}
	block := make([]byte, 1<<20)
	fill(block, 4)
	for i := range n {
		binary.LittleEndian.PutUint64(block, uint64(i))
		if _, err := os.Stdout.Write(block); err != nil {
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
	// A reset ends the process because of -no-reboot. microvm has no power button.
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
}
