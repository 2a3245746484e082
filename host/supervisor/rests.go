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

// maxRests bounds the outputs that are copied for exec processes that have ended. A guest can
// hold each open as long as it wants.
const maxRests = 256

// rests are outputs of exec'd processes that other processes still write to. The exec process
// has ended with its process, as engines expect, and the supervisor goes on with its outputs.
type rests struct {
	places chan struct{}
	crowd  crowd
}

func newRests() *rests { return &rests{places: make(chan struct{}, maxRests)} }

// take receives a stream and the file for its rest from an exec process, and returns when the
// stream has ended. The read deadline of host is set.
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
	// Whatever ends it, closing both ends tells both sides.
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
	defer files[0].Close() // FileConn has a duplicate
	if from, err = net.FileConn(files[0]); err != nil {
		files[1].Close()
		return nil, nil, fmt.Errorf("receive descriptors: %w", err)
	}
	return from, files[1], nil
}
