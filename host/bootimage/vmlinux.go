package bootimage

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	// notePhys32Entry is XEN_ELFNOTE_PHYS32_ENTRY (xen/interface/elfnote.h): the 32-bit entry
	// point at which QEMU starts a PVH guest.
	notePhys32Entry = 18

	maxNotes = 1 << 20 // bytes of one segment; Linux has about a hundred
)

var errNoPVH = errors.New("the kernel lacks CONFIG_PVH (no XEN_ELFNOTE_PHYS32_ENTRY note), which QEMU needs to boot it directly")

// checkVMLinux returns an error if QEMU cannot boot r through PVH.
func checkVMLinux(r io.ReaderAt) error {
	f, err := elf.NewFile(r)
	if err != nil {
		return fmt.Errorf("unpacked kernel is not an ELF file: %w", err)
	}
	if f.Class != elf.ELFCLASS64 || f.Machine != elf.EM_X86_64 {
		return fmt.Errorf("unpacked kernel is %s %s, not a 64-bit x86 kernel", f.Class, f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		notes := make([]byte, min(p.Filesz, maxNotes))
		if _, err := p.ReadAt(notes, 0); err != nil {
			return fmt.Errorf("truncated kernel: read notes: %w", err)
		}
		if hasNote(notes, f.ByteOrder, "Xen", notePhys32Entry) {
			return nil
		}
	}
	return errNoPVH
}

// hasNote searches ELF notes. A note is three words (size of the name, size of the descriptor,
// type), then the name and the descriptor, each padded to four bytes.
func hasNote(b []byte, order binary.ByteOrder, name string, kind uint32) bool {
	for len(b) >= 12 {
		nameSize, descSize := uint64(order.Uint32(b)), uint64(order.Uint32(b[4:]))
		typ := order.Uint32(b[8:])
		b = b[12:]
		nameEnd := (nameSize + 3) &^ 3
		descEnd := nameEnd + (descSize+3)&^3
		if nameSize > uint64(len(b)) || nameEnd+descSize > uint64(len(b)) {
			return false
		}
		if typ == kind && descSize >= 4 && string(bytes.TrimRight(b[:nameSize], "\x00")) == name {
			return true
		}
		b = b[min(descEnd, uint64(len(b))):]
	}
	return false
}

// builtinMarkers are strings that a kernel contains if and only if a driver is built in: names
// under which drivers register, which no configuration removes. They are used instead of
// modules.builtin for a kernel without a module directory.
var builtinMarkers = []struct{ module, marker string }{
	{"virtio_mmio", "virtio-mmio\x00"},
	{"virtio_console", "virtio_console\x00"},
	{"9pnet_virtio", "9pnet_virtio\x00"},
}

// missingBuiltins returns the required drivers that are not built into the unpacked kernel r.
func missingBuiltins(r io.Reader) ([]string, error) {
	const piece, keep = 1 << 20, 32
	found := make([]bool, len(builtinMarkers))
	buf := make([]byte, 0, piece)
	for {
		n, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		for i, m := range builtinMarkers {
			found[i] = found[i] || bytes.Contains(buf, []byte(m.marker))
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read kernel: %w", err)
		}
		buf = append(buf[:0], buf[len(buf)-keep:]...)
	}
	var missing []string
	for i, m := range builtinMarkers {
		if !found[i] {
			missing = append(missing, m.module)
		}
	}
	return missing, nil
}
