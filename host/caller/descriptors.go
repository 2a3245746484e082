package caller

import (
	"fmt"
	"os"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/supervisor/launch"
	"github.com/huskvm/husk/host/supervisor/stdio"
	"github.com/huskvm/husk/protocol"
)

// Descriptors returns the caller's descriptors from 3 on that the process gets, and their
// kinds: n of a service manager, and then as many as --preserve-fds says. The files are for the
// child, and the caller closes them.
func Descriptors(n int) (kinds []byte, files []launch.NamedFile, err error) {
	if n < 0 || n > protocol.MaxDescriptors {
		return nil, nil, fmt.Errorf("--preserve-fds: %d descriptors: at most %d can be passed into a virtual machine", n, protocol.MaxDescriptors)
	}
	for i := range n {
		fd := protocol.FirstDescriptor + i
		f := os.NewFile(uintptr(fd), strconv.Itoa(fd))
		kind, err := stdio.KindOf(f)
		if err != nil {
			return nil, nil, fmt.Errorf("--preserve-fds: descriptor %d: %w", fd, err)
		}
		kinds = append(kinds, byte(kind))
		files = append(files, launch.NamedFile{Name: stdio.FileName(fd), File: f})
	}
	return kinds, files, nil
}

// Sockets returns how many sockets a service manager has passed to this process
// (sd_listen_fds(3)). They are the first descriptors from 3 on.
func Sockets() int {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return 0 // the variables are another process's, and were inherited
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n <= 0 {
		return 0
	}
	return n
}

// Activate returns what Sockets returns, and sets the variables by which the container's
// process finds these sockets.
func Activate(p *specs.Process) int {
	n := Sockets()
	if p == nil || n == 0 {
		return 0
	}
	// The pid in the container's own pid namespace. runc always sets 1, too.
	p.Env = append(p.Env, fmt.Sprintf("LISTEN_FDS=%d", n), "LISTEN_PID=1")
	return n
}
