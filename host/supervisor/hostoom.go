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
	vmm      *os.File    // the vmm's status
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
	// A quarter less, for what is not counted here.
	if least := limit - limit/4; had < least {
		return fmt.Errorf("of %d bytes the virtual machine has never used more than %d", limit, had)
	}
	return nil
}

const (
	// tellInterval is how often the host is told at most: engines take one kill for
	// the container's, and a guest may have one after the other. It doubles each time.
	tellInterval    = 5 * time.Second
	maxTellInterval = 5 * time.Minute
	tellTimeout     = 5 * time.Second
	// hogBytes is what the memory hog takes at least until there is no more: enough to
	// run this process meanwhile.
	hogBytes = 16 << 20
	// mostCache is how many bytes of cache the hog takes the place of. A guest that has
	// touched much memory, or read many files, leaves gigabytes, which the kernel is told
	// to give up: it has to read again what was of use, such as a template.
	mostCache = 512 << 20
	// maxHogBytes is too much to ask of the host for a message.
	maxHogBytes = 2 << 30
)

// mayTell says whether it is time to tell the host again, and takes that time. The
// caller holds mu.
func (h *hostOOM) mayTell(now time.Time) bool {
	if !h.told.IsZero() && now.Sub(h.told) < h.interval {
		return false
	}
	h.interval = min(max(2*h.interval, tellInterval), maxTellInterval)
	h.told = now
	return true
}

// tell has the kernel kill a process in the container's cgroup on the host for
// want of memory: one made for that. Most times there is nothing to do: see mayTell.
func (h *hostOOM) tell() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.memory == nil || !h.mayTell(time.Now()) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), tellTimeout)
	defer cancel()
	// Against an update, whose limit would be lost.
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

// runOut makes the cgroup run out of memory, with the vmm stopped: it must neither
// be the one that finds no memory, nor the one that is killed for that.
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
		// The hog would have to take its place.
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
	// What the kernel gives up of its cache is in the way first.
	hungry, err := h.startHog(adj, room+cache+hogBytes)
	if err != nil {
		return err
	}
	// Its own start has taken some.
	if used, _, err = h.memory.Used(); err != nil {
		hungry.End()
		return err
	}
	letGo, err := h.memory.Squeeze(used + room)
	if err != nil {
		hungry.End()
		return err
	}
	return errors.Join(hungry.Go(), letGo())
}

// hogSize is how much more than the cgroup uses the hog must be able to take so that
// it is the one to be killed, and not the vmm, in bytes. The kernel's choice is
// who has the most points: resident bytes, and of the limit as many thousandths
// as oom_score_adj says, which is 1000 for the hog. With u used and x for the
// hog, the limit is u+x, and
//
//	x + (u+x) > vmm + (u+x)*adj/1000
//
// solved for x. A quarter more is for what is not counted here.
func hogSize(used, vmm int64, adj int) int64 {
	const whole = 1000
	least := (vmm*whole - used*int64(whole-adj)) / int64(2*whole-adj)
	return max(least+least/4+hogBytes, hogBytes)
}

// startHog starts one that is the first to be killed. It has that from this process,
// for which, until it is started, the same is true. The vmm is stopped meanwhile, and
// no limit set yet.
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

// hogScoreAdj is the most there is.
const hogScoreAdj = 1000

func (h *hostOOM) setOOMScoreAdj(adj int) error {
	if _, err := h.scoreAdj.WriteAt([]byte(strconv.Itoa(adj)), 0); err != nil {
		return fmt.Errorf("set oom_score_adj: %w", err)
	}
	return nil
}

// oomScoreAdj is this process's, and the vmm's, which has it from here.
func (h *hostOOM) oomScoreAdj() (int, error) {
	text, err := readAgain(h.scoreAdj)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}

// vmmBytes adds up lines of the vmm's status, such as VmRSS:, what it has in memory, and
// VmHWM:, the most it has had there.
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

// openStatus opens the file of a process, known by its number here.
func openStatus(pid int) (*os.File, error) {
	// The proc filesystem may count processes differently.
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
