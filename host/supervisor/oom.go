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

	"github.com/huskvm/husk/host/cgroup"
	"github.com/huskvm/husk/host/detached"
	"github.com/huskvm/husk/host/supervisor/control"
	"github.com/huskvm/husk/host/supervisor/hog"
	"github.com/huskvm/husk/protocol"
)

// ooms is what this process knows of processes killed for want of memory in the
// guest.
type ooms struct {
	follow sync.Once

	// From before there was no path to trust, and these files alone, for whoever has
	// /proc can reach all of the host by it. memory is nil where the host has no memory
	// cgroup, and then the others are.
	memory   *cgroup.OOM
	program  *os.File // a directory with this program
	scoreAdj *os.File // this process's oom_score_adj
	vmm      *os.File // the vmm's status

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
	if s.ooms.memory == nil {
		return nil
	}
	s.ooms.scoreAdj, err = os.OpenFile("/proc/self/oom_score_adj", os.O_RDWR, 0)
	return err
}

// openHog keeps the program of the hog; stage is a directory to use meanwhile. Without
// it the container works, but the host does not hear of a kill in the guest.
func (s *supervisor) openHog(stage string) {
	if s.ooms.memory == nil {
		return
	}
	var err error
	if s.ooms.program, err = detached.OpenProgram(stage, hog.Program); err != nil {
		s.log.WithError(err).Warn("processes killed for want of memory in the guest will not be told of by the host's cgroup")
		s.ooms.memory = nil
	}
}

// watchMemory keeps what tells of the vmm's memory.
func (s *supervisor) watchMemory(ctx context.Context) error {
	if s.ooms.memory == nil {
		return nil
	}
	pid, err := s.machine.VMMPID(ctx)
	if err != nil {
		return err
	}
	s.ooms.vmm, err = openStatus(pid)
	return err
}

// followOOM notes each kill, from the first process of the container on, until the
// channel breaks.
func (s *supervisor) followOOM() {
	s.ooms.follow.Do(func() {
		go func() {
			var seen uint64
			for {
				resp, err := s.machine.Agent().AwaitOOM(context.Background(), &protocol.AwaitOOMRequest{ContainerId: s.container.ID, Seen: seen})
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
	s.tellOOMKills(kills)
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
	if s.ooms.vmm == nil {
		return nil
	}
	had, err := s.vmmBytes("VmHWM:", "VmSwap:")
	if err != nil {
		return nil //nolint:nilerr // nothing is known of a VM that is ending
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
	// mostCache is how many bytes of cache the hog takes the place of. A guest that has
	// touched much memory, or read many files, leaves gigabytes, which the kernel is told
	// to give up: it has to read again what was of use, such as a template.
	mostCache = 512 << 20
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
	vmm, err := s.machine.VMMPID(ctx)
	if err != nil {
		return err
	}
	before, err := s.ooms.memory.Kills()
	if err != nil {
		return err
	}
	if err := s.runOut(vmm); err != nil {
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
	if cache > mostCache {
		// The hog would have to take its place.
		if err := s.ooms.memory.DropCache(cache); err != nil {
			return err
		}
		if used, cache, err = s.ooms.memory.Used(); err != nil {
			return err
		}
	}
	vmm, err := s.vmmBytes("VmRSS:")
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
	h, err := s.startHog(adj, room+cache+hogBytes)
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

// startHog starts one that is the first to be killed. It has that from this process,
// for which, until it is started, the same is true. The vmm is stopped meanwhile, and
// no limit set yet.
func (s *supervisor) startHog(adj int, bytes int64) (_ *hog.Process, err error) {
	if err := s.setOOMScoreAdj(hogScoreAdj); err != nil {
		return nil, err
	}
	h, err := hog.Start(s.ooms.program, bytes)
	if rerr := s.setOOMScoreAdj(adj); rerr != nil {
		if err == nil {
			h.End()
		}
		return nil, errors.Join(err, rerr)
	}
	return h, err
}

// hogScoreAdj is the most there is.
const hogScoreAdj = 1000

func (s *supervisor) setOOMScoreAdj(adj int) error {
	if _, err := s.ooms.scoreAdj.WriteAt([]byte(strconv.Itoa(adj)), 0); err != nil {
		return fmt.Errorf("set oom_score_adj: %w", err)
	}
	return nil
}

// oomScoreAdj is this process's, and the vmm's, which has it from here.
func (s *supervisor) oomScoreAdj() (int, error) {
	text, err := readAgain(s.ooms.scoreAdj)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}

// vmmBytes adds up lines of the vmm's status, such as VmRSS:, what it has in memory, and
// VmHWM:, the most it has had there.
func (s *supervisor) vmmBytes(keys ...string) (int64, error) {
	status, err := readAgain(s.ooms.vmm)
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
