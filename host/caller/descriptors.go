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

// Descriptors are the caller's descriptors from 3 on that the process is to
// have, and their kinds: n of them, those that a service manager has handed over, and
// as many after them as --preserve-fds says. The files are for the child, and whoever
// called this closes them.
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

// Activate returns how many sockets a service manager has handed over to this
// process (sd_listen_fds(3)), and tells the container's process of them.
func Activate(p *specs.Process) int {
	if p == nil || os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return 0
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n <= 0 {
		return 0
	}
	// Its number in its own pid namespace, whatever is there: runc says so, too.
	p.Env = append(p.Env, fmt.Sprintf("LISTEN_FDS=%d", n), "LISTEN_PID=1")
	return n
}
