package bootimage

import (
	"bytes"
	"debug/pe"
	"fmt"
	"io"
)

// imageIn returns the kernel image in a file of size bytes. For a unified kernel image (UKI: a
// PE program that contains a kernel, its initramfs and its command line) that is the section
// .linux, for other files the whole file. A bzImage with an EFI stub is also a PE program, but
// is itself the kernel.
func imageIn(file io.ReaderAt, size int64) (*io.SectionReader, error) {
	whole := io.NewSectionReader(file, 0, size)
	head := make([]byte, setupHeaderEnd)
	if n, err := whole.ReadAt(head, 0); err != nil || !bytes.HasPrefix(head[:n], []byte("MZ")) ||
		bytes.Equal(head[offBootMagic:offBootMagic+4], []byte("HdrS")) {
		return whole, nil //nolint:nilerr // too short for a kernel, which its reader reports
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
