package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"time"
)

const mib = 1 << 20

// block returns a block as testprog writes it.
func block(seed byte) []byte {
	b := make([]byte, mib)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b) // never fails
	return b
}

// stdout measures how fast a container's output arrives, and checks that it is complete.
func (b *bench) stdout() error {
	bundle := b.bundle("stdout")
	words := []string{"testprog", "blocks", strconv.Itoa(b.mib)}
	if err := b.makeBundle(bundle, filepath.Join(b.dir, "rootfs"), words); err != nil {
		return err
	}
	figure := fmt.Sprintf("stdout of %d MiB", b.mib)
	for _, r := range b.runtimes {
		var rates []float64
		err := r.output(bundle, b.id(), func(out io.Reader) (err error) {
			rates, err = b.readBlocks(out)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		b.results.values(figure, r.name, "MiB/s", figure, rates)
	}
	// The floor is one virtio-serial port without any protocol.
	vm, err := b.huskVM()
	if err != nil {
		return err
	}
	g, err := b.bareGuest(vm, b.dir, husksExport, nil)
	if err != nil {
		return err
	}
	defer g.stop()
	var rates []float64
	err = g.stream(func(in *bufio.Reader) (err error) {
		if rates, err = b.readBlocks(in); err == nil {
			_, err = in.ReadByte() // the newline before the verdict
		}
		return err
	}, words[1:]...)
	if err != nil {
		return err
	}
	b.results.values(figure, floorName, "MiB/s", "", rates)
	return nil
}

// readBlocks reads what testprog blocks writes, and returns the rate of each twentieth of it,
// in MiB/s.
func (b *bench) readBlocks(in io.Reader) ([]float64, error) {
	want, got := block(4), make([]byte, mib)
	piece := max(b.mib/20, 1)
	var rates []float64
	// Starting the container is another figure, so the clock starts at its first byte. A reader
	// that has a buffer of this size already stays the same.
	buffered := bufio.NewReaderSize(in, mib)
	if _, err := buffered.Peek(1); err != nil {
		return nil, err
	}
	began := time.Now()
	for i := range b.mib {
		if _, err := io.ReadFull(buffered, got); err != nil {
			return nil, fmt.Errorf("MiB %d of %d: %w", i, b.mib, err)
		}
		binary.LittleEndian.PutUint64(want, uint64(i))
		if !bytes.Equal(got, want) {
			return nil, fmt.Errorf("MiB %d of %d is not what was written", i, b.mib)
		}
		if (i+1)%piece == 0 {
			rates = append(rates, float64(piece)/time.Since(began).Seconds())
			began = time.Now()
		}
	}
	return rates, nil
}
