package client

import (
	"encoding/binary"
	"fmt"
)

// Types of messages, of 9p2000.L.
const (
	rlerror      = 7
	tstatfs      = 8
	tlopen       = 12
	tlcreate     = 14
	tsymlink     = 16
	tmknod       = 18
	trename      = 20
	treadlink    = 22
	tgetattr     = 24
	tsetattr     = 26
	txattrwalk   = 30
	txattrcreate = 32
	treaddir     = 40
	tfsync       = 50
	tlock        = 52
	tgetlock     = 54
	tlink        = 70
	tmkdir       = 72
	trenameat    = 74
	tunlinkat    = 76
	tversion     = 100
	tauth        = 102
	tattach      = 104
	tflush       = 108
	twalk        = 110
	topen        = 112
	tcreate      = 114
	tread        = 116
	twrite       = 118
	tclunk       = 120
	tremove      = 122
	tstat        = 124
	twstat       = 126
)

const (
	noFID    = 0xffffffff
	noTag    = 0xffff
	noID     = 0xffffffff
	headSize = 7

	// Values of Tsetattr's valid field.
	setMode    = 1
	setUID     = 2
	setGID     = 4
	setSize    = 8
	setATime   = 16
	setMTime   = 32
	setATimeTo = 128
	setMTimeTo = 256
)

// message encodes a request. Fields are uint8, uint16, uint32, uint64, a string, []string with
// its count, or []byte as it is.
func message(kind uint8, tag uint16, fields ...any) []byte {
	b := []byte{0, 0, 0, 0, kind}
	le := binary.LittleEndian
	b = le.AppendUint16(b, tag)
	for _, f := range fields {
		switch f := f.(type) {
		case uint8:
			b = append(b, f)
		case uint16:
			b = le.AppendUint16(b, f)
		case uint32:
			b = le.AppendUint32(b, f)
		case uint64:
			b = le.AppendUint64(b, f)
		case string:
			b = le.AppendUint16(b, uint16(len(f)))
			b = append(b, f...)
		case []string:
			b = le.AppendUint16(b, uint16(len(f)))
			for _, s := range f {
				b = le.AppendUint16(b, uint16(len(s)))
				b = append(b, s...)
			}
		case []byte:
			b = append(b, f...)
		default:
			panic(fmt.Sprintf("a message has no %T", f))
		}
	}
	le.PutUint32(b, uint32(len(b)))
	return b
}

// errno is an error number from the server.
type errno uint32

func (e errno) Error() string { return fmt.Sprintf("errno %d", uint32(e)) }

// Error numbers of Linux that the tests distinguish.
const (
	enoent = errno(2)
	exdev  = errno(18)
	erofs  = errno(30)
)

// body returns what follows the header of a reply to a request of this kind.
func body(kind uint8, reply []byte) ([]byte, error) {
	if len(reply) < headSize {
		return nil, fmt.Errorf("a reply of %d bytes to request %d", len(reply), kind)
	}
	switch reply[4] {
	case rlerror:
		if len(reply) < headSize+4 {
			return nil, fmt.Errorf("an error of %d bytes", len(reply))
		}
		return nil, errno(binary.LittleEndian.Uint32(reply[headSize:]))
	case kind + 1:
		return reply[headSize:], nil
	}
	return nil, fmt.Errorf("reply %d to request %d", reply[4], kind)
}

// qid is the server's identifier of a file.
type qid [13]byte
