package supervisor

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/protocol"
)

// maxRests bounds how many outputs are carried for exec processes that have ended: a
// guest holds each for as long as it likes.
const maxRests = 256

// rests are outputs of exec'd processes that others still write to. The exec process
// has ended with its process, as engines expect, and this process goes on.
type rests struct {
	places chan struct{}
	crowd  crowd
}

func newRests() *rests { return &rests{places: make(chan struct{}, maxRests)} }

// take receives a stream and where its rest goes to from an exec process, and returns
// when it has ended. Host's read deadline is set.
func (r *rests) take(host *net.UnixConn) error {
	select {
	case r.places <- struct{}{}:
		defer func() { <-r.places }()
	default:
		return protocol.WriteStreamAck(host, fmt.Errorf("%d processes still write to outputs of ended ones", maxRests))
	}
	from, to, err := receiveRest(host)
	if err != nil {
		return errors.Join(err, protocol.WriteStreamAck(host, err))
	}
	defer from.Close()
	defer to.Close()
	r.crowd.enter()
	defer r.crowd.leave()
	if err := protocol.WriteStreamAck(host, nil); err != nil {
		return err
	}
	_ = host.Close()
	// Whatever ends it, closing both tells both sides.
	_, _ = io.Copy(struct{ io.Writer }{to}, from)
	return nil
}

func receiveRest(host *net.UnixConn) (from net.Conn, to *os.File, err error) {
	const count, size = 2, 4
	oob := make([]byte, unix.CmsgSpace(count*size))
	_, n, _, _, err := host.ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		return nil, nil, fmt.Errorf("receive descriptors: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, nil, errors.Join(errors.New("receive descriptors: none came"), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, nil, fmt.Errorf("receive descriptors: %w", err)
	}
	var files []*os.File
	for _, fd := range fds {
		unix.CloseOnExec(fd)
		files = append(files, os.NewFile(uintptr(fd), "rest"))
	}
	if len(files) != count {
		for _, f := range files {
			f.Close()
		}
		return nil, nil, fmt.Errorf("receive descriptors: %d came", len(files))
	}
	defer files[0].Close() // FileConn has a copy
	if from, err = net.FileConn(files[0]); err != nil {
		files[1].Close()
		return nil, nil, fmt.Errorf("receive descriptors: %w", err)
	}
	return from, files[1], nil
}
