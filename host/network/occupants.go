package network

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/syscalls"
)

// Occupant is a process in a network namespace.
type Occupant struct {
	PID     int
	Command string // the process's argv[0], at most 64 bytes
	// Visits: only the process's network namespace is not the host's, as with nsenter or ip
	// netns exec. It belongs to no container then.
	Visits bool
}

// leaveTime bounds how long Occupants waits for processes that are about to exit: those of a
// pod's last container, or a program that an engine runs in the namespace.
const leaveTime = 2 * time.Second

// Occupants returns the processes that stay in the network namespace at hostPath. It looks at
// each process of the host, which takes about 10 microseconds for one.
func Occupants(hostPath string) ([]Occupant, error) {
	deadline := time.Now().Add(leaveTime)
	for {
		found, err := occupants(hostPath)
		if err != nil {
			return nil, err
		}
		waits := false
		for _, o := range found {
			// Visitors are not waited for.
			waits = waits || (!o.Visits && awaitEnd(o.PID, time.Until(deadline)))
		}
		if !waits {
			return found, nil
		}
	}
}

func occupants(hostPath string) ([]Occupant, error) {
	wanted, err := syscalls.IdentityOf(hostPath)
	if err != nil {
		return nil, fmt.Errorf("look for processes in network namespace: %w", err)
	}
	root, err := syscalls.IdentityOf("/proc/self/root/.")
	if err != nil {
		return nil, err
	}
	pids, err := syscalls.IdentityOf("/proc/self/ns/pid")
	if err != nil {
		return nil, err
	}
	names, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var found []Occupant
	for _, dir := range names {
		ns, err := syscalls.IdentityOf(dir + "/ns/net")
		if err != nil || ns != wanted {
			continue // it has ended, is a zombie, or is in another namespace
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		itsRoot, rootErr := syscalls.IdentityOf(dir + "/root/.")
		itsPIDs, pidErr := syscalls.IdentityOf(dir + "/ns/pid")
		found = append(found, Occupant{
			PID: pid, Command: commandOf(dir),
			Visits: rootErr == nil && pidErr == nil && itsRoot == root && itsPIDs == pids,
		})
	}
	return found, nil
}

func commandOf(dir string) string {
	const most = 64
	f, err := os.Open(dir + "/cmdline")
	if err != nil {
		return ""
	}
	defer f.Close()
	buf := make([]byte, most)
	n, _ := f.Read(buf) // as much as there is
	name, _, _ := strings.Cut(string(buf[:n]), "\x00")
	return name
}

// awaitEnd waits until a process has ended, for at most limit. It says whether the process has
// ended.
func awaitEnd(pid int, limit time.Duration) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return true
	}
	if err != nil || limit <= 0 {
		return false
	}
	defer unix.Close(fd)
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(limit.Milliseconds()))
	return n > 0 || errors.Is(err, unix.EINTR)
}
