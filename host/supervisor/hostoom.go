package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/cgroup"
	"github.com/huskvm/husk/host/detached"
	"github.com/huskvm/husk/host/machine"
	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/hog"
)

// hostOOM knows what the host has to say of the machine's memory, and has the host's kernel
// say in the container's cgroup that a process was killed for want of memory.
//
// What it needs of the host is open from before there was no path to trust, and these files
// alone, for whoever has /proc can reach all of the host by it. They are opened while the
// container is created and never change afterwards.
type hostOOM struct {
	dir      *state.Dir
	log      *logrus.Logger
	memory   *cgroup.OOM // nil where the host has no memory cgroup; then so are the others
	program  *os.File    // a directory with this program
	scoreAdj *os.File    // this process's oom_score_adj
	vmm      *os.File    // the vmm's status file
	vmmPID   func(context.Context) (int, error)

	// mu is held for a telling, which takes tellTimeout at most. Its fields are below.
	mu       sync.Mutex
	told     time.Time
	interval time.Duration // between two tellings
}

// openHostOOM opens what is known before there is a machine. group may be nil.
func openHostOOM(dir *state.Dir, group *cgroup.Group, log *logrus.Logger) (_ *hostOOM, err error) {
	h := &hostOOM{dir: dir, log: log}
	if group == nil {
		return h, nil
	}
	if h.memory, err = group.OpenOOM(); err != nil || h.memory == nil {
		return h, err
	}
	h.scoreAdj, err = os.OpenFile("/proc/self/oom_score_adj", os.O_RDWR, 0)
	return h, err
}

// openProgram keeps the program of the hog; stage is a directory to use meanwhile. Without
// it the container works, but the host does not hear of a kill in the guest.
func (h *hostOOM) openProgram(stage string) {
	if h.memory == nil {
		return
	}
	var err error
	if h.program, err = detached.OpenProgram(stage, hog.Program); err != nil {
		h.log.WithError(err).Warn("processes killed for want of memory in the guest will not be told of by the host's cgroup")
		h.memory = nil
	}
}

// openVMM keeps what tells of the vmm's memory.
func (h *hostOOM) openVMM(ctx context.Context, m *machine.Machine) error {
	if h.memory == nil {
		return nil
	}
	h.vmmPID = m.VMMPID
	pid, err := h.vmmPID(ctx)
	if err != nil {
		return err
	}
	h.vmm, err = openStatus(pid)
	return err
}

// runsPrograms says whether tell executes one.
func (h *hostOOM) runsPrograms() bool { return h.memory != nil }

// doubt says why there can't have been a kill for want of memory: all that a guest
// uses the vmm has had in memory at some time. A container that has used its memory once
// can say so at any time later, and could as well have a process killed. Where a limit is
// below what QEMU itself takes, nothing can be told. limit is what the container may use,
// in bytes.
func (h *hostOOM) doubt(limit int64) error {
	if h.vmm == nil {
		return nil
	}
	had, err := h.vmmBytes("VmHWM:", "VmSwap:")
	if err != nil {
		return nil //nolint:nilerr // nothing is known of a VM that is ending
	}
	// A quarter less, for memory that is not counted here.
	if least := limit - limit/4; had < least {
		return fmt.Errorf("of %d bytes the virtual machine has never used more than %d", limit, had)
	}
	return nil
}

const (
	// tellInterval is the shortest time between two reports to the host. Engines take one kill
	// for the container's, and a guest may have many in a row. It doubles each time.
	tellInterval    = 5 * time.Second
	maxTellInterval = 5 * time.Minute
	tellTimeout     = 5 * time.Second
	// hogBytes is how much memory the hog uses at least before there is no more. This process
	// needs some meanwhile.
	hogBytes = 16 << 20
	// mostCache is how many bytes of page cache the hog displaces at most. A guest that has
	// used much memory or read many files leaves gigabytes. The kernel is told to drop the
	// rest, and has to read again what was still useful, such as a template.
	mostCache = 512 << 20
	// maxHogBytes is the size of a hog that is too large for a report.
	maxHogBytes = 2 << 30
)

// mayTell says whether the host may be told again, and if so, notes the time. The caller holds
// mu.
func (h *hostOOM) mayTell(now time.Time) bool {
	if !h.told.IsZero() && now.Sub(h.told) < h.interval {
		return false
	}
	h.interval = min(max(2*h.interval, tellInterval), maxTellInterval)
	h.told = now
	return true
}

// tell makes the kernel kill a process in the container's cgroup on the host for lack of
// memory. The process is started for that. Most calls do nothing: see mayTell.
func (h *hostOOM) tell() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.memory == nil || !h.mayTell(time.Now()) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), tellTimeout)
	defer cancel()
	// Otherwise an update at the same time could lose its limit.
	if err := h.dir.Lock(ctx); err != nil {
		return err
	}
	defer h.dir.Unlock()
	vmm, err := h.vmmPID(ctx)
	if err != nil {
		return err
	}
	before, err := h.memory.Kills()
	if err != nil {
		return err
	}
	if err := h.runOut(vmm); err != nil {
		return err
	}
	if after, err := h.memory.Kills(); err != nil || after == before {
		return errors.Join(errors.New("the kernel has killed nothing"), err)
	}
	return nil
}

// runOut makes the cgroup run out of memory while the vmm is stopped: the vmm must not be the
// process that finds no memory, nor the one that is killed.
func (h *hostOOM) runOut(vmmPID int) (err error) {
	if err := unix.Kill(vmmPID, unix.SIGSTOP); err != nil {
		return fmt.Errorf("stop vmm: %w", err)
	}
	defer func() {
		if cerr := unix.Kill(vmmPID, unix.SIGCONT); cerr != nil {
			err = errors.Join(err, fmt.Errorf("continue vmm: %w", cerr))
		}
	}()
	used, cache, err := h.memory.Used()
	if err != nil {
		return err
	}
	if cache > mostCache {
		// Otherwise the hog would have to displace this cache.
		if err := h.memory.DropCache(cache); err != nil {
			return err
		}
		if used, cache, err = h.memory.Used(); err != nil {
			return err
		}
	}
	vmm, err := h.vmmBytes("VmRSS:")
	if err != nil {
		return err
	}
	adj, err := h.oomScoreAdj()
	if err != nil {
		return err
	}
	room := hogSize(used, vmm, adj)
	if room+cache > maxHogBytes {
		return fmt.Errorf("it would take %d bytes", room+cache)
	}
	// Before it kills, the kernel drops the cache that is left.
	hungry, err := h.startHog(adj, room+cache+hogBytes)
	if err != nil {
		return err
	}
	// Starting the hog has used some memory.
	if used, _, err = h.memory.Used(); err != nil {
		hungry.End()
		return err
	}
	restore, err := h.memory.LowerLimit(used + room)
	if err != nil {
		hungry.End()
		return err
	}
	return errors.Join(hungry.Go(), restore())
}

// hogSize returns how much more memory than the cgroup uses, in bytes, the hog must be able to
// use so that the kernel kills it and not the vmm. The kernel kills the process with the most
// points: its resident bytes, plus as many thousandths of the limit as its oom_score_adj says,
// which is 1000 for the hog. With u bytes used and x for the hog, the limit is u+x, and
//
//	x + (u+x) > vmm + (u+x)*adj/1000
//
// solved for x. A quarter more is for memory that is not counted here.
func hogSize(used, vmm int64, adj int) int64 {
	const whole = 1000
	least := (vmm*whole - used*int64(whole-adj)) / int64(2*whole-adj)
	return max(least+least/4+hogBytes, hogBytes)
}

// startHog starts a hog that the kernel kills first. It inherits its oom_score_adj from this
// process, so until the hog is started the same is true for this process. The vmm is stopped
// meanwhile, and no limit is set yet.
func (h *hostOOM) startHog(adj int, bytes int64) (_ *hog.Process, err error) {
	if err := h.setOOMScoreAdj(hogScoreAdj); err != nil {
		return nil, err
	}
	hungry, err := hog.Start(h.program, bytes)
	if rerr := h.setOOMScoreAdj(adj); rerr != nil {
		if err == nil {
			hungry.End()
		}
		return nil, errors.Join(err, rerr)
	}
	return hungry, err
}

// hogScoreAdj is the highest value.
const hogScoreAdj = 1000

func (h *hostOOM) setOOMScoreAdj(adj int) error {
	if _, err := h.scoreAdj.WriteAt([]byte(strconv.Itoa(adj)), 0); err != nil {
		return fmt.Errorf("set oom_score_adj: %w", err)
	}
	return nil
}

// oomScoreAdj returns the value of this process, which the vmm has inherited.
func (h *hostOOM) oomScoreAdj() (int, error) {
	text, err := readAgain(h.scoreAdj)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}

// vmmBytes returns the sum of lines in the vmm's status, such as VmRSS: (its memory now) and
// VmHWM: (the most it has had).
func (h *hostOOM) vmmBytes(keys ...string) (int64, error) {
	status, err := readAgain(h.vmm)
	if err != nil {
		return 0, err
	}
	var bytes int64
	for line := range strings.Lines(status) {
		for _, key := range keys {
			if v, ok := strings.CutPrefix(line, key); ok {
				kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
				if err != nil {
					return 0, fmt.Errorf("read the vmm's status: %w", err)
				}
				bytes += kib << 10
			}
		}
	}
	if bytes == 0 {
		return 0, errors.New("the vmm has no memory") // it has ended
	}
	return bytes, nil
}

// openStatus opens the status file of a process, by its pid in this pid namespace.
func openStatus(pid int) (*os.File, error) {
	// The mounted proc filesystem may belong to another pid namespace.
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(info)) {
		if v, ok := strings.CutPrefix(line, "Pid:"); ok {
			return os.Open("/proc/" + strings.TrimSpace(v) + "/status")
		}
	}
	return nil, fmt.Errorf("process %d is not in /proc", pid)
}

// readAgain reads a small file of /proc from its beginning.
func readAgain(f *os.File) (string, error) {
	const most = 64 << 10 // a user can be in thousands of groups
	b := make([]byte, most)
	n, err := f.ReadAt(b, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return strings.TrimSpace(string(b[:n])), err
}
