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

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/agent/protocol"
	"github.com/huskvm/husk/cgroup"
	"github.com/huskvm/husk/supervisor/control"
	"github.com/huskvm/husk/supervisor/hog"
)

// ooms is what this process knows of processes killed for want of memory in the
// guest.
type ooms struct {
	follow sync.Once

	// From before there was no path to trust; memory is nil where the host has no
	// memory cgroup.
	proc   *os.File
	memory *cgroup.OOM

	telling  sync.Mutex
	told     time.Time     // under telling
	interval time.Duration // between two tellings; under telling

	doubted sync.Once // a lie is logged once

	mu    sync.Mutex
	kills uint64
	more  chan struct{} // closed when kills grows; nil while nobody waits
}

// openOOM opens what telling the host takes.
func (s *supervisor) openOOM() (err error) {
	if s.container.Cgroup == nil {
		return nil
	}
	if s.ooms.memory, err = s.container.Cgroup.OpenOOM(); err != nil {
		return err
	}
	s.ooms.proc, err = os.Open("/proc")
	return err
}

// followOOM notes each kill, from the first process of the container on, until the
// channel breaks.
func (s *supervisor) followOOM() {
	s.ooms.follow.Do(func() {
		go func() {
			var seen uint64
			for {
				resp, err := s.agent.Control().AwaitOOM(context.Background(), &protocol.AwaitOOMRequest{ContainerId: s.container.ID, Seen: seen})
				if err != nil || resp.Kills <= seen {
					return // the container is gone, or the guest speaks nonsense
				}
				seen = resp.Kills
				s.noteOOM(seen)
				// The next answer has all that have been killed until then.
				select {
				case <-time.After(followInterval):
				case <-s.over:
				}
			}
		}()
	})
}

// noteOOM tells of kills that are new, and returns when the host knows. What the guest
// says is not believed where the host knows better.
func (s *supervisor) noteOOM(kills uint64) {
	if err := s.doubtOOM(); err != nil {
		s.ooms.doubted.Do(func() {
			s.log.WithError(err).Warn("the guest says that a process was killed for want of memory, which cannot be")
		})
		return
	}
	s.ooms.mu.Lock()
	if kills > s.ooms.kills {
		s.ooms.kills = kills
		if s.ooms.more != nil {
			close(s.ooms.more)
			s.ooms.more = nil
		}
	}
	s.ooms.mu.Unlock()
	if err := s.tellOOM(); err != nil {
		s.log.WithError(err).Warn("a process was killed for want of memory in the guest, which the host's cgroup does not tell")
	}
}

// AwaitOOM is for events.
func (s *supervisor) AwaitOOM(ctx context.Context, req *control.AwaitOOMRequest) (*control.AwaitOOMResponse, error) {
	for {
		s.ooms.mu.Lock()
		if s.ooms.more == nil {
			s.ooms.more = make(chan struct{})
		}
		kills, more := s.ooms.kills, s.ooms.more
		s.ooms.mu.Unlock()
		if kills > req.Seen {
			return &control.AwaitOOMResponse{Kills: kills}, nil
		}
		select {
		case <-more:
		case <-s.over:
			return &control.AwaitOOMResponse{Kills: req.Seen}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// doubtOOM says why there can't have been a kill for want of memory: all that a guest
// uses the vmm has had in memory at some time. A container that has used its memory once
// can say so at any time later, and could as well have a process killed. Where a limit is
// below what QEMU itself takes, nothing can be told.
func (s *supervisor) doubtOOM() error {
	if s.ooms.proc == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), tellTimeout)
	defer cancel()
	info, err := s.vm.Info(ctx)
	if err != nil {
		return nil //nolint:nilerr // nothing is known of a VM that is ending
	}
	had, err := s.peakBytes(info.HostPID)
	if err != nil {
		return nil //nolint:nilerr // as above
	}
	limit := s.memoryLimit()
	// A quarter less, for what is not counted here.
	if least := limit - limit/4; had < least {
		return fmt.Errorf("of %d bytes the virtual machine has never used more than %d", limit, had)
	}
	return nil
}

// memoryLimit is what the container may use, in bytes.
func (s *supervisor) memoryLimit() int64 {
	limit := int64(s.boot.Machine.MemoryMiB) << 20
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.container.Cgroup
	if g == nil || g.Limits == nil || g.Limits.Memory == nil || g.Limits.Memory.Limit == nil || *g.Limits.Memory.Limit <= 0 {
		return limit
	}
	return min(limit, *g.Limits.Memory.Limit)
}

const (
	// tellInterval is how often the host is told at most: engines take one kill for
	// the container's, and a guest may have one after the other. It doubles each time.
	tellInterval    = 5 * time.Second
	maxTellInterval = 5 * time.Minute
	tellTimeout     = 5 * time.Second
	// followInterval is how often the guest is listened to.
	followInterval = time.Second
	// hogBytes is what the memory hog takes at least until there is no more: enough to
	// run this process meanwhile.
	hogBytes = 16 << 20
	// maxHogBytes is too much to ask of the host for a message.
	maxHogBytes = 2 << 30
)

// mayTell says whether it is time to tell the host again, and takes that time. The
// caller holds telling.
func (o *ooms) mayTell(now time.Time) bool {
	if !o.told.IsZero() && now.Sub(o.told) < o.interval {
		return false
	}
	o.interval = min(max(2*o.interval, tellInterval), maxTellInterval)
	o.told = now
	return true
}

// tellOOM has the kernel kill a process in the container's cgroup on the host for
// want of memory: one made for that.
func (s *supervisor) tellOOM() error {
	s.ooms.telling.Lock()
	defer s.ooms.telling.Unlock()
	if s.ooms.memory == nil || !s.ooms.mayTell(time.Now()) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), tellTimeout)
	defer cancel()
	// Against an update, whose limit would be lost.
	if err := s.dir.Lock(ctx); err != nil {
		return err
	}
	defer s.dir.Unlock()
	info, err := s.vm.Info(ctx)
	if err != nil {
		return err
	}
	before, err := s.ooms.memory.Kills()
	if err != nil {
		return err
	}
	if err := s.runOut(info.HostPID); err != nil {
		return err
	}
	if after, err := s.ooms.memory.Kills(); err != nil || after == before {
		return errors.Join(errors.New("the kernel has killed nothing"), err)
	}
	return nil
}

// runOut makes the cgroup run out of memory, with the vmm stopped: it must neither
// be the one that finds no memory, nor the one that is killed for that.
func (s *supervisor) runOut(vmmPID int) (err error) {
	if err := unix.Kill(vmmPID, unix.SIGSTOP); err != nil {
		return fmt.Errorf("stop vmm: %w", err)
	}
	defer func() {
		if cerr := unix.Kill(vmmPID, unix.SIGCONT); cerr != nil {
			err = errors.Join(err, fmt.Errorf("continue vmm: %w", cerr))
		}
	}()
	used, cache, err := s.ooms.memory.Used()
	if err != nil {
		return err
	}
	vmm, err := s.residentBytes(vmmPID)
	if err != nil {
		return err
	}
	adj, err := s.oomScoreAdj()
	if err != nil {
		return err
	}
	room := hogSize(used, vmm, adj)
	if room+cache > maxHogBytes {
		return fmt.Errorf("it would take %d bytes", room+cache)
	}
	// What the kernel gives up of its cache is in the way first.
	h, err := hog.Start(s.ooms.proc, room+cache+hogBytes)
	if err != nil {
		return err
	}
	// Its own start has taken some.
	if used, _, err = s.ooms.memory.Used(); err != nil {
		h.End()
		return err
	}
	letGo, err := s.ooms.memory.Squeeze(used + room)
	if err != nil {
		h.End()
		return err
	}
	return errors.Join(h.Go(), letGo())
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

// oomScoreAdj is this process's, and the vmm's, which has it from here.
func (s *supervisor) oomScoreAdj() (int, error) {
	text, err := s.readProc("self/oom_score_adj")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}

// residentBytes is what a process, known by its number here, has in memory.
func (s *supervisor) residentBytes(pid int) (int64, error) {
	statm, err := s.readProcOf(pid, "statm")
	if err != nil {
		return 0, err
	}
	var size, resident int64
	if _, err := fmt.Sscan(statm, &size, &resident); err != nil {
		return 0, fmt.Errorf("read statm: %w", err)
	}
	return resident * int64(os.Getpagesize()), nil
}

// peakBytes is the most that a process has had in memory, and what of it is swapped out.
func (s *supervisor) peakBytes(pid int) (int64, error) {
	status, err := s.readProcOf(pid, "status")
	if err != nil {
		return 0, err
	}
	var bytes int64
	for line := range strings.Lines(status) {
		for _, key := range []string{"VmHWM:", "VmSwap:"} {
			if v, ok := strings.CutPrefix(line, key); ok {
				kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
				if err != nil {
					return 0, fmt.Errorf("read status: %w", err)
				}
				bytes += kib << 10
			}
		}
	}
	if bytes == 0 {
		return 0, fmt.Errorf("process %d has no memory", pid) // it has ended
	}
	return bytes, nil
}

// readProcOf reads a file of a process that is known by its number here. The proc
// filesystem may count processes differently.
func (s *supervisor) readProcOf(pid int, name string) (string, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return "", os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	info, err := s.readProc(fmt.Sprintf("self/fdinfo/%d", fd))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(info) {
		if v, ok := strings.CutPrefix(line, "Pid:"); ok {
			return s.readProc(strings.TrimSpace(v) + "/" + name)
		}
	}
	return "", fmt.Errorf("process %d is not in /proc", pid)
}

// readProc reads a small file of the host's /proc.
func (s *supervisor) readProc(name string) (string, error) {
	fd, err := unix.Openat(int(s.ooms.proc.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: "/proc/" + name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	const most = 16 << 10
	b, err := io.ReadAll(io.LimitReader(f, most))
	return strings.TrimSpace(string(b)), err
}
