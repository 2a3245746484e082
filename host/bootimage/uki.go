package bootimage

import (
	"bytes"
	"debug/pe"
	"fmt"
	"io"
)

// imageIn returns the kernel image in a file of size bytes: all of it, or of a unified
// kernel image (UKI, a PE program that carries a kernel, its initramfs and its command
// line) the section .linux. A bzImage with an EFI stub is a PE program too, but is the
// kernel itself.
func imageIn(file io.ReaderAt, size int64) (*io.SectionReader, error) {
	whole := io.NewSectionReader(file, 0, size)
	head := make([]byte, setupHeaderEnd)
	if n, err := whole.ReadAt(head, 0); err != nil || !bytes.HasPrefix(head[:n], []byte("MZ")) ||
		bytes.Equal(head[offBootMagic:offBootMagic+4], []byte("HdrS")) {
		return whole, nil //nolint:nilerr // too short for a kernel, which its reader says in its own words
	}
	program, err := pe.NewFile(whole)
	if err != nil {
		return nil, fmt.Errorf("read kernel: a PE program, but damaged: %w", err)
	}
	linux := program.Section(".linux")
	if linux == nil {
		return nil, fmt.Errorf("read kernel: a PE program without a kernel in it (no section .linux)")
	}
	offset, length := int64(linux.Offset), int64(min(linux.Size, linux.VirtualSize))
	if offset+length > size {
		return nil, fmt.Errorf("read kernel: truncated: its section .linux ends at byte %d of %d", offset+length, size)
	}
	return io.NewSectionReader(file, offset, length), nil
}
