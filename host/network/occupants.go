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
)

// Occupant is a process that lives in a network namespace.
type Occupant struct {
	PID     int
	Command string // argv[0] as it says itself, at most 64 bytes
	// Visits is set for one that is of the host but for its network, as with nsenter
	// or ip netns exec, and so not of a container.
	Visits bool
}

// identity is what tells two namespaces or directories apart.
type identity struct{ dev, inode uint64 }

func identityOf(path string) (identity, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return identity{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return identity{st.Dev, st.Ino}, nil
}

// leaveTime is how long a process that is on its way out may take: the last container
// of a pod's namespace, or a program that an engine runs in it.
const leaveTime = 2 * time.Second

// Occupants returns the processes in the network namespace at hostPath that stay there.
// It looks at each process of the host, which takes some 10 microseconds for one.
func Occupants(hostPath string) ([]Occupant, error) {
	deadline := time.Now().Add(leaveTime)
	for {
		found, err := occupants(hostPath)
		if err != nil {
			return nil, err
		}
		waits := false
		for _, o := range found {
			// A visitor is no reason to wait.
			waits = waits || (!o.Visits && awaitEnd(o.PID, time.Until(deadline)))
		}
		if !waits {
			return found, nil
		}
	}
}

func occupants(hostPath string) ([]Occupant, error) {
	wanted, err := identityOf(hostPath)
	if err != nil {
		return nil, fmt.Errorf("look for processes in network namespace: %w", err)
	}
	root, err := identityOf("/proc/self/root/.")
	if err != nil {
		return nil, err
	}
	pids, err := identityOf("/proc/self/ns/pid")
	if err != nil {
		return nil, err
	}
	names, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var found []Occupant
	for _, dir := range names {
		ns, err := identityOf(dir + "/ns/net")
		if err != nil || ns != wanted {
			continue // gone, a zombie, or elsewhere
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		itsRoot, rootErr := identityOf(dir + "/root/.")
		itsPIDs, pidErr := identityOf(dir + "/ns/pid")
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
	n, _ := f.Read(buf) // what there is
	name, _, _ := strings.Cut(string(buf[:n]), "\x00")
	return name
}

// awaitEnd waits until a process has ended and says whether it has.
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
