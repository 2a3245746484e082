package libcontainer

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/nsfork"
)

var errNoCgroup = errors.New("the container has no cgroup")

// Container is a container from Create on until Destroy. It is safe for use by
// many goroutines.
type Container struct {
	plan   *plan
	init   *Process
	pidfd  *os.File // of init
	cgroup *cgroup  // nil: none
	kept   *kept    // namespaces of a prepared container; nil: none

	// freezer is held while the cgroup freezes, and while a process is forked into it:
	// the fork ends with the child's execve, which a frozen one never gets to, and until
	// then the calling thread keeps its place among those that run Go code.
	freezer sync.Mutex

	mu        sync.Mutex
	started   bool
	destroyed bool
	held      []setting // to be applied at start
	execs     map[*Process]struct{}
	// filter is the default device filter, where the cgroup has it already.
	filter *os.File
}

// stageThreads is the number of tasks an init stage may need; the process it
// becomes has one.
const stageThreads = 16

// holdBack says whether a setting would keep the init stage from working and has
// to wait until execve.
func holdBack(s setting) bool {
	n, err := strconv.Atoi(s.value)
	return s.file == "pids.max" && err == nil && n < stageThreads
}

// Create makes a container whose process waits just before execve. Its errors
// are what follows "unable to start container process: " in runc's, and leave
// nothing behind but mount points made in the rootfs.
func Create(cfg *Config) (*Container, error) {
	p, err := newPlan(cfg)
	if ready := cfg.Prepared; ready != nil && (err != nil || !ready.fits(p)) {
		if derr := ready.Discard(); derr != nil {
			return nil, errors.Join(err, derr)
		}
		cfg.Prepared = nil
	}
	if err != nil {
		return nil, err
	}
	c := &Container{plan: p, execs: make(map[*Process]struct{})}
	if err := c.create(cfg); err != nil {
		return nil, errors.Join(err, c.cgroup.destroy())
	}
	return c, nil
}

func (c *Container) create(cfg *Config) (err error) {
	if cfg.Prepared != nil {
		// For a name that nobody has asked for it would take too long.
		if !c.plan.init.CgroupNS && cfg.Spec.Linux.CgroupsPath != "" {
			err = cfg.Prepared.move(cfg.CgroupPath)
		}
		cfg.Prepared.take(c)
		if err == nil {
			err = c.limit()
		}
		_ = c.filter.Close() // the cgroup keeps it
		c.filter = nil
	} else {
		err = c.fork(cfg)
	}
	if err == nil {
		err = c.init.handshake(&c.plan.init)
	}
	if err != nil && c.init != nil {
		c.init.abandon()
		_ = c.pidfd.Close()
	}
	return err
}

// fork starts the container's init stage, in its cgroup. With an error there is
// no stage.
func (c *Container) fork(cfg *Config) (err error) {
	cgroupFD := -1
	if cfg.CgroupPath != "" {
		if c.cgroup, err = createCgroup(c.plan.cgroupRoot, cfg.CgroupPath); err != nil {
			return err
		}
		if err := c.limit(); err != nil {
			return err
		}
		if c.plan.userNS != nil && c.plan.writesCgroup() {
			if err := c.cgroup.delegate(c.plan.userNS); err != nil {
				return err
			}
		}
		cgroupFD = int(c.cgroup.file.Fd())
	}
	c.init, c.pidfd, err = fork(&forkRequest{
		args:      c.plan.initArgs,
		clone:     c.plan.clone,
		userNS:    c.plan.userNS,
		enter:     c.plan.prepareThread(),
		apart:     c.plan.timeNS != nil && c.plan.userNS == nil,
		cgroupFD:  cgroupFD,
		terminal:  c.plan.init.Process.Terminal,
		passed:    c.plan.descriptors,
		oomKilled: c.cgroup.oomKilled,
	})
	if err != nil {
		c.init = nil
	}
	return err
}

// limit applies the container's limits and device rules to its cgroup, but for
// the limits that wait.
func (c *Container) limit() error {
	for _, s := range c.plan.settings {
		if holdBack(s) {
			c.held = append(c.held, s)
		}
	}
	if err := c.cgroup.apply(c.plan.settings, holdBack); err != nil {
		return err
	}
	if c.filter != nil && bytes.Equal(c.plan.devices, compileFilter(defaultDevices)) {
		return nil
	}
	return c.cgroup.filterDevices(c.plan.devices, c.filter)
}

// Init is the container's first process.
func (c *Container) Init() *Process { return c.init }

// NetNS is the path of the container's network namespace, valid while its first
// process lives.
func (c *Container) NetNS() string { return procFile(c.init.PID(), "ns/net") }

// CgroupDir is the container's cgroup as a directory, "" without one.
func (c *Container) CgroupDir() string {
	if c.cgroup == nil {
		return ""
	}
	return c.cgroup.dir
}

// Start lets the container's process go and returns when it executes the
// program, or with the reason why it can't.
func (c *Container) Start() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.init.ended() || c.destroyed:
		return errors.New("cannot start a container that has stopped")
	case c.started:
		return errors.New("cannot start an already running container")
	}
	c.started = true
	if err := c.init.release(); err != nil {
		return err
	}
	if c.cgroup == nil {
		return nil
	}
	return c.cgroup.apply(c.held, nil)
}

// execNamespaces are entered before the fork: the kernel moves children only
// into a pid namespace, and the stage needs no more of the others. The cgroup
// and mount namespaces are the stage's to enter, because from inside of them the
// fork could reach neither the container's cgroup nor this program.
const execNamespaces = unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// Exec starts one more process in the container and returns when it executes
// its program. bareNewlines and descriptors are as in Config. Its errors are as
// Create's.
func (c *Container) Exec(spec *specs.Process, bareNewlines bool, descriptors ...*os.File) (*Process, error) {
	if spec == nil {
		return nil, errors.New("process property must not be empty")
	}
	cfg := &initConfig{Join: true, UserNS: c.plan.userNS != nil, CgroupNS: c.plan.init.CgroupNS}
	var err error
	if cfg.Process, err = newProcessConfig(spec); err != nil {
		return nil, err
	}
	if err := c.plan.userNS.check(&cfg.Process); err != nil {
		return nil, err
	}
	cfg.Process.BareNewlines = bareNewlines
	cfg.Process.Personality = c.plan.init.Process.Personality
	cfg.Process.MemoryPolicy = c.plan.init.Process.MemoryPolicy
	cfg.Process.Seccomp = c.plan.init.Process.Seccomp
	p, err := c.forkExec(cfg, descriptors)
	if err != nil {
		return nil, err
	}
	if err := p.handshake(cfg); err != nil {
		p.abandon()
		return nil, err
	}
	if err := p.release(); err != nil {
		p.abandon()
		return nil, err
	}
	return p, nil
}

// forkExec starts the stage of Exec. It holds the lock, so that Destroy sees
// either no such process or one to kill.
func (c *Container) forkExec(cfg *initConfig, descriptors []*os.File) (*Process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.init.ended() || c.destroyed {
		return nil, errors.New("cannot exec in a stopped container")
	}
	r := &forkRequest{
		args:      c.plan.execArgs,
		userNS:    c.plan.userNS,
		enter:     func() error { return c.enter() },
		cgroupFD:  -1,
		passed:    descriptors,
		extra:     []*os.File{c.pidfd},
		terminal:  cfg.Process.Terminal,
		oomKilled: c.cgroup.oomKilled,
	}
	opened, err := c.openNamespaces(r)
	defer func() {
		for _, f := range opened {
			_ = f.Close()
		}
	}()
	if err != nil {
		return nil, err
	}
	c.freezer.Lock()
	defer c.freezer.Unlock()
	if c.cgroup != nil {
		if frozen, err := c.cgroup.frozen(); err != nil || frozen {
			return nil, errors.Join(errors.New("cannot exec in a paused container"), err)
		}
		r.cgroupFD = int(c.cgroup.file.Fd())
	}
	p, pidfd, err := fork(r)
	if c.cgroup != nil && errors.Is(err, unix.EBUSY) {
		// A container that manages cgroups of its own has left the top one, which
		// can hold no process any more.
		var dir string
		if dir, err = c.cgroup.of(c.init.PID()); err == nil {
			var f *os.File
			if f, err = os.Open(dir); err == nil {
				defer func() { _ = f.Close() }()
				r.cgroupFD = int(f.Fd())
				p, pidfd, err = fork(r)
			}
		}
	}
	if err != nil {
		return nil, err
	}
	_ = pidfd.Close()
	c.execs[p] = struct{}{}
	go func() {
		<-p.done
		c.mu.Lock()
		delete(c.execs, p)
		c.mu.Unlock()
	}()
	return p, nil
}

// openNamespaces opens what an exec's stage has to join in another way than by the
// pidfd. The files are the caller's to close, also with an error.
func (c *Container) openNamespaces(r *forkRequest) (opened []*os.File, err error) {
	open := func(name string) (*os.File, error) {
		f, err := os.Open(procFile(c.init.PID(), name))
		if err == nil {
			opened = append(opened, f)
		}
		return f, err
	}
	if c.plan.timeNS != nil {
		f, err := open("ns/time")
		if err != nil {
			return opened, err
		}
		r.joins = append(r.joins, nsfork.Join{File: f, Flag: unix.CLONE_NEWTIME})
	}
	if c.plan.userNS != nil {
		// Last: before it there are the rights to join the others.
		f, err := open("ns/user")
		if err != nil {
			return opened, err
		}
		r.joins = append(r.joins, nsfork.Join{File: f, Flag: unix.CLONE_NEWUSER})
		names := []string{"ns/mnt"}
		if c.plan.init.CgroupNS {
			names = append(names, "ns/cgroup")
		}
		r.extra = nil
		for _, name := range names {
			f, err := open(name)
			if err != nil {
				return opened, err
			}
			r.extra = append(r.extra, f)
		}
	}
	// The number was not another's meanwhile.
	if err := unix.PidfdSendSignal(int(c.pidfd.Fd()), 0, nil, 0); err != nil && len(opened) > 0 {
		return opened, errors.New("cannot exec in a stopped container")
	}
	return opened, nil
}

func (c *Container) enter() error {
	if err := unix.Setns(int(c.pidfd.Fd()), execNamespaces); err != nil {
		return fmt.Errorf("join namespaces of container: %w", err)
	}
	return nil
}

// Kill signals the first process, or with all every process of the container,
// even after the first has ended.
func (c *Container) Kill(sig unix.Signal, all bool) error {
	if !all {
		return c.init.Signal(sig)
	}
	switch {
	case c.cgroup != nil && sig == unix.SIGKILL:
		return c.cgroup.kill()
	case c.cgroup != nil:
		return c.signalCgroup(sig)
	}
	var errs []error
	for _, p := range c.known() {
		if err := p.Signal(sig); err != nil && !errors.Is(err, ErrNotRunning) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// signalCgroup freezes the container meanwhile, so that no process escapes by a
// fork and no number is reused.
func (c *Container) signalCgroup(sig unix.Signal) (err error) {
	c.freezer.Lock()
	defer c.freezer.Unlock()
	was, err := c.cgroup.frozen()
	if err != nil {
		return err
	}
	if !was {
		if err := c.cgroup.freeze(true); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.cgroup.freeze(false)) }()
	}
	pids, err := c.cgroup.pids()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("unable to signal process: %w", err)
		}
	}
	return nil
}

// known lists the processes this Container has started and that live.
func (c *Container) known() []*Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []*Process
	if !c.init.ended() {
		all = append(all, c.init)
	}
	for p := range c.execs {
		all = append(all, p)
	}
	return all
}

// Pause freezes every process and returns when they are.
func (c *Container) Pause() error {
	if c.cgroup == nil {
		return errNoCgroup
	}
	if c.init.ended() {
		return ErrNotRunning
	}
	c.freezer.Lock()
	defer c.freezer.Unlock()
	return c.cgroup.freeze(true)
}

// Resume undoes Pause.
func (c *Container) Resume() error {
	if c.cgroup == nil {
		return errNoCgroup
	}
	return c.cgroup.freeze(false)
}

// Update changes limits; what r leaves out stays as it is.
func (c *Container) Update(r *specs.LinuxResources) error {
	all, err := settings(r)
	if err != nil {
		return err
	}
	if r != nil && len(r.Devices) > 0 {
		return errors.New("linux.resources.devices of a container that exists cannot be changed")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.cgroup == nil:
		return errNoCgroup
	case c.init.ended() || c.destroyed:
		return ErrNotRunning
	case r == nil:
		return nil
	}
	if err := c.cgroup.checkMemory(all, r.Memory != nil && deref(r.Memory.CheckBeforeUpdate)); err != nil {
		return err
	}
	if c.started {
		return c.cgroup.apply(all, nil)
	}
	for _, s := range all {
		if s.file == "pids.max" {
			c.held = nil // it replaces the one held
			if holdBack(s) {
				c.held = []setting{s}
			}
		}
	}
	return c.cgroup.apply(all, holdBack)
}

// Stats reads what the container's cgroup has counted.
func (c *Container) Stats() (*Stats, error) {
	if c.cgroup == nil {
		return nil, errNoCgroup
	}
	return c.cgroup.stats()
}

// Pids lists the container's processes by their numbers in the caller's pid
// namespace: without a cgroup, only those that Create and Exec started.
func (c *Container) Pids() ([]int, error) {
	if c.cgroup != nil {
		return c.cgroup.pids()
	}
	var pids []int
	for _, p := range c.known() {
		pids = append(pids, p.PID())
	}
	return pids, nil
}

// Destroy kills what is left of the container, waits for it and removes the
// cgroup. The stdio of its processes stays open: output may still be in there.
// It may be called again, also after it has failed.
func (c *Container) Destroy() error {
	c.mu.Lock()
	c.destroyed = true
	c.mu.Unlock()
	if c.cgroup != nil {
		// The removal below tries it again, and tells of a failure.
		_ = c.cgroup.kill()
	}
	deadline := time.NewTimer(eventTimeout)
	defer deadline.Stop()
	for _, p := range c.known() {
		// A process may have left the cgroup.
		_ = p.proc.Kill()
		select {
		case <-p.done:
		case <-deadline.C:
			return fmt.Errorf("destroy container: process %d does not end", p.PID())
		}
	}
	if err := c.cgroup.destroy(); err != nil {
		return err
	}
	c.init.conn.close()
	_ = c.pidfd.Close()
	c.kept.close()
	return nil
}
