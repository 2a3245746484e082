package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// Requests of the protocol that are answered or obeyed. All others are an error: the
// vmm makes them for features only that it has not been offered.
const (
	getFeatures         = 1
	setFeatures         = 2
	setOwner            = 3
	resetOwner          = 4
	setMemTable         = 5
	setVringNum         = 8
	setVringAddr        = 9
	setVringBase        = 10
	getVringBase        = 11
	setVringKick        = 12
	setVringCall        = 13
	setVringErr         = 14
	getProtocolFeatures = 15
	setProtocolFeatures = 16
	getQueueNum         = 17
	setVringEnable      = 18
)

const (
	headerSize = 12
	// maxPayload is in bytes. The longest message is a table of regions.
	maxPayload = 8 + maxRegions*regionSize

	flagVersion   = 0x1
	versionMask   = 0x3
	flagReply     = 0x4
	flagNeedReply = 0x8
)

var order = binary.LittleEndian

// message is one of the vmm's.
type message struct {
	request uint32
	flags   uint32
	payload []byte
	fds     []int
}

// close closes the descriptors that nobody has taken.
func (m *message) close() {
	for _, fd := range m.fds {
		_ = unix.Close(fd)
	}
	m.fds = nil
}

// takeFD hands over the one descriptor that a message has.
func (m *message) takeFD() (int, error) {
	if len(m.fds) != 1 {
		return -1, fmt.Errorf("%d descriptors in place of one", len(m.fds))
	}
	fd := m.fds[0]
	m.fds = nil
	return fd, nil
}

func (m *message) u64() (uint64, error) {
	if len(m.payload) != 8 {
		return 0, fmt.Errorf("%d bytes in place of 8", len(m.payload))
	}
	return order.Uint64(m.payload), nil
}

// vring reads a number of a queue and a value.
func (m *message) vring() (index int, value uint32, err error) {
	if len(m.payload) != 8 {
		return 0, 0, fmt.Errorf("%d bytes in place of 8", len(m.payload))
	}
	n, value := order.Uint32(m.payload), order.Uint32(m.payload[4:])
	if n >= maxQueues {
		return 0, 0, fmt.Errorf("there is no queue %d", n)
	}
	return int(n), value, nil
}

// receive reads one message. io.EOF is the end between two of them.
func receive(conn *net.UnixConn) (*message, error) {
	m := &message{}
	header := make([]byte, headerSize)
	n, err := m.read(conn, header)
	if err != nil {
		m.close()
		return nil, err
	}
	if n < headerSize {
		if err := m.readFull(conn, header[n:]); err != nil {
			m.close()
			return nil, err
		}
	}
	m.request, m.flags = order.Uint32(header), order.Uint32(header[4:])
	size := order.Uint32(header[8:])
	if m.flags&versionMask != flagVersion || size > maxPayload {
		m.close()
		return nil, fmt.Errorf("message %d of %d bytes with flags %#x is none of the protocol's", m.request, size, m.flags)
	}
	m.payload = make([]byte, size)
	if err := m.readFull(conn, m.payload); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func (m *message) readFull(conn *net.UnixConn, p []byte) error {
	for len(p) > 0 {
		n, err := m.read(conn, p)
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// read keeps the descriptors that come along.
func (m *message) read(conn *net.UnixConn, p []byte) (int, error) {
	control := make([]byte, unix.CmsgSpace(4*maxRegions))
	n, oobn, flags, _, err := conn.ReadMsgUnix(p, control) // close-on-exec
	if err != nil {
		return 0, err
	}
	fds, err := descriptors(control[:oobn])
	m.fds = append(m.fds, fds...)
	switch {
	case err != nil:
		return 0, err
	case flags&unix.MSG_CTRUNC != 0 || len(m.fds) > maxRegions:
		return 0, errors.New("more descriptors than a message can have")
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

func descriptors(control []byte) (fds []int, err error) {
	if len(control) == 0 {
		return nil, nil
	}
	all, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, fmt.Errorf("read descriptors: %w", err)
	}
	for i := range all {
		got, err := unix.ParseUnixRights(&all[i])
		if err != nil {
			continue // credentials, which nobody asked for
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// reply answers with a payload.
func reply(conn *net.UnixConn, m *message, payload []byte) error {
	b := make([]byte, headerSize, headerSize+len(payload))
	order.PutUint32(b, m.request)
	order.PutUint32(b[4:], flagVersion|flagReply)
	order.PutUint32(b[8:], uint32(len(payload)))
	_, err := conn.Write(append(b, payload...))
	return err
}

func replyU64(conn *net.UnixConn, m *message, v uint64) error {
	return reply(conn, m, order.AppendUint64(nil, v))
}
