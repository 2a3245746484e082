package bootimage

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	lzo "github.com/anchore/go-lzo"
)

// lzopMagic is at the beginning of a file in the format of lzop(1), in which LZO kernels are
// packed. go-lzo unpacks its blocks but does not know the file format.
const lzopMagic = "\x89LZO\x00\r\n\x1a\n"

const (
	// maxLzopBlock is the size of the largest block that lzop writes, in bytes unpacked.
	maxLzopBlock = 64 << 20

	lzopAdler32D = 0x1   // a checksum of each unpacked block
	lzopAdler32C = 0x2   // a checksum of each packed block
	lzopExtra    = 0x40  // an extra field follows the header
	lzopCRC32D   = 0x100 // CRC-32 of each unpacked block
	lzopCRC32C   = 0x200
	lzopFilter   = 0x800
)

type lzopReader struct {
	r     *bufio.Reader
	flags uint32
	block []byte // the part of an unpacked block that was not read yet
	done  bool
}

func openLzop(r io.Reader) (io.ReadCloser, error) {
	z := &lzopReader{r: bufio.NewReader(r)}
	if err := z.header(); err != nil {
		return nil, err
	}
	return io.NopCloser(z), nil
}

// header reads the file's header. It ignores the header's checksum: errors are found by the
// unpacked size and by checking the ELF file that comes out.
func (z *lzopReader) header() error {
	fixed := make([]byte, len(lzopMagic)+2+2)
	if _, err := io.ReadFull(z.r, fixed); err != nil {
		return err
	}
	version := binary.BigEndian.Uint16(fixed[len(lzopMagic):])
	skip := 1 // method
	if version >= 0x0940 {
		skip = 2 + 1 + 1 // version needed, method, level
	}
	if err := z.skip(skip); err != nil {
		return err
	}
	flags, err := z.u32()
	if err != nil {
		return err
	}
	z.flags = flags
	if flags&(lzopExtra|lzopFilter) != 0 {
		return fmt.Errorf("lzop flags %#x are not supported", flags)
	}
	skip = 4 + 4 // mode, mtime
	if version >= 0x0940 {
		skip += 4 // the upper half of mtime
	}
	if err := z.skip(skip); err != nil {
		return err
	}
	nameLength, err := z.r.ReadByte()
	if err != nil {
		return err
	}
	return z.skip(int(nameLength) + 4) // name, checksum
}

func (z *lzopReader) Read(p []byte) (int, error) {
	for len(z.block) == 0 {
		if z.done {
			return 0, io.EOF
		}
		if err := z.next(); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF // a complete file ends with an empty block
			}
			return 0, err
		}
	}
	n := copy(p, z.block)
	z.block = z.block[n:]
	return n, nil
}

func (z *lzopReader) next() error {
	size, err := z.u32()
	if err != nil {
		return err
	}
	if size == 0 {
		z.done = true
		return nil
	}
	packed, err := z.u32()
	if err != nil {
		return err
	}
	if size > maxLzopBlock || packed > size || packed == 0 {
		return fmt.Errorf("damaged data: lzop block of %d bytes in %d", size, packed)
	}
	sums := 0
	for _, f := range []uint32{lzopAdler32D, lzopCRC32D} {
		if z.flags&f != 0 {
			sums += 4
		}
	}
	for _, f := range []uint32{lzopAdler32C, lzopCRC32C} {
		if z.flags&f != 0 && packed < size {
			sums += 4
		}
	}
	if err := z.skip(sums); err != nil {
		return err
	}
	in, err := io.ReadAll(io.LimitReader(z.r, int64(packed)))
	if err != nil {
		return err
	}
	if len(in) < int(packed) {
		return io.ErrUnexpectedEOF
	}
	if packed == size { // stored without compression
		z.block = in
		return nil
	}
	out := make([]byte, size)
	n, err := lzo.Decompress(in, out)
	if err != nil {
		return err
	}
	if n != int(size) {
		return fmt.Errorf("damaged data: lzop block unpacked to %d bytes of %d", n, size)
	}
	z.block = out
	return nil
}

func (z *lzopReader) u32() (uint32, error) {
	var b [4]byte
	_, err := io.ReadFull(z.r, b[:])
	return binary.BigEndian.Uint32(b[:]), err
}

func (z *lzopReader) skip(n int) error {
	_, err := z.r.Discard(n)
	return err
}
