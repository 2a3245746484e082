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

// Container is a container between Create and Destroy. All methods may be called by many
// goroutines at once.
type Container struct {
	plan   *plan
	init   *Process
	pidfd  *os.File        // of the first process
	cgroup *cgroup         // nil: the container has no cgroup
	kept   *keptNamespaces // keeps the namespaces of a prepared container open; nil otherwise

	// freezer is held while the cgroup is being frozen, and while a process is being forked
	// into it. Without the lock a frozen child would never reach execve, and the thread that
	// waits for its execve would block one of the threads that run Go code.
	freezer sync.Mutex

	mu        sync.Mutex
	started   bool
	destroyed bool
	deferred  []setting // written to the cgroup at Start
	execs     map[*Process]struct{}
	// filter is the default device filter if the cgroup has it already, else nil.
	filter *os.File
}

// stageThreads is the number of tasks an init stage may need. The process that it becomes
// starts with one.
const stageThreads = 16

// deferred says whether a setting is too tight for the init stage, so that it must not be
// written before execve.
func deferred(s setting) bool {
	n, err := strconv.Atoi(s.value)
	return s.file == "pids.max" && err == nil && n < stageThreads
}

// Create makes a container whose first process waits just before execve. The caller must call
// Destroy in the end.
//
// With an error nothing is left but mount points that were made in the rootfs. The error's text
// is what runc prints after "unable to start container process: ", because engines match it.
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
		// The move into another cgroup is slow, so it is done only if somebody asked for the
		// name.
		if !c.plan.init.CgroupNS && cfg.Spec.Linux.CgroupsPath != "" {
			err = cfg.Prepared.move(cfg.CgroupPath)
		}
		cfg.Prepared.take(c)
		if err == nil {
			err = c.limit()
		}
		_ = c.filter.Close() // the cgroup keeps the filter alive
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

// fork starts the container's init stage in its cgroup. After an error no stage runs.
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
		args:           c.plan.initArgs,
		clone:          c.plan.clone,
		userNS:         c.plan.userNS,
		enter:          c.plan.prepareThread(),
		noSharedMemory: c.plan.timeNS != nil && c.plan.userNS == nil,
		cgroupFD:       cgroupFD,
		terminal:       c.plan.init.Process.Terminal,
		passed:         c.plan.descriptors,
		oomKilled:      c.cgroup.oomKilled,
	})
	if err != nil {
		c.init = nil
	}
	return err
}

// limit writes the container's limits and device rules to its cgroup, except for the limits
// that have to wait for execve.
func (c *Container) limit() error {
	for _, s := range c.plan.settings {
		if deferred(s) {
			c.deferred = append(c.deferred, s)
		}
	}
	if err := c.cgroup.apply(c.plan.settings, deferred); err != nil {
		return err
	}
	if c.filter != nil && bytes.Equal(c.plan.devices, compileFilter(defaultDevices)) {
		return nil
	}
	return c.cgroup.filterDevices(c.plan.devices, c.filter)
}

// Init returns the container's first process.
func (c *Container) Init() *Process { return c.init }

// NetNS returns the path of the container's network namespace in /proc. The path is valid as
// long as the first process lives.
func (c *Container) NetNS() string { return procFile(c.init.PID(), "ns/net") }

// CgroupDir returns the absolute path of the container's cgroup, or "" if it has none.
func (c *Container) CgroupDir() string {
	if c.cgroup == nil {
		return ""
	}
	return c.cgroup.dir
}

// Start lets the first process execute its program, and returns when it has. It fails if the
// container was started before or has ended, or with the reason why the program cannot be
// executed.
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
	return c.cgroup.apply(c.deferred, nil)
}

// execNamespaces are joined by the thread that forks an exec'd process. The kernel puts only
// children into a joined pid namespace, and joining the other three early does no harm. The
// stage itself joins the cgroup and mount namespaces: inside of those the thread could open
// neither the container's cgroup nor this program.
const execNamespaces = unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// Exec starts one more process in the container and returns when it has executed its program.
// bareNewlines and descriptors mean the same as in Config. Error texts follow runc's, like
// those of Create.
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

// forkExec starts the init stage of Exec. It holds c.mu, so that Destroy sees either no process
// or one that it can kill.
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
		// A container that manages its own cgroups has moved its processes out of the top one.
		// The kernel then allows no process there (EBUSY), so the new one goes where the first
		// is.
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

// openNamespaces opens the namespaces that the init stage of an exec cannot join by the pidfd.
// The caller closes the files, also after an error.
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
		// The user namespace comes last: the rights to join the others are those of the
		// caller's user namespace.
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
	// The paths went by pid. The process is still there, so the pid was not reused before the
	// files were opened.
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

// Kill sends a signal to the first process or, with all, to every process of the container,
// also after the first has ended. It returns ErrNotRunning if the first process has ended and
// all is false.
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

// signalCgroup signals every process of the container. The container is frozen while it does,
// so that no process escapes by forking and no pid is reused.
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

// known lists the running processes that Create and Exec have started.
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

// Pause freezes every process of the container and returns when all are frozen. It returns
// ErrNotRunning if the first process has ended.
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

// Resume thaws what Pause has frozen. It is no error if nothing is frozen.
func (c *Container) Resume() error {
	if c.cgroup == nil {
		return errNoCgroup
	}
	return c.cgroup.freeze(false)
}

// Update changes the limits in r. A limit that r leaves out stays as it is.
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
			c.deferred = nil // the new value replaces it
			if deferred(s) {
				c.deferred = []setting{s}
			}
		}
	}
	return c.cgroup.apply(all, deferred)
}

// Stats returns the statistics of the container's cgroup.
func (c *Container) Stats() (*Stats, error) {
	if c.cgroup == nil {
		return nil, errNoCgroup
	}
	return c.cgroup.stats()
}

// Pids returns the container's processes, as pids of the caller's pid namespace. If the
// container has no cgroup, only processes from Create and Exec are known.
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

// Destroy kills all processes of the container, waits until they have ended, and removes the
// cgroup. The stdio of the processes stays open, because unread output may be in it. Destroy
// may be called again, also after an error.
func (c *Container) Destroy() error {
	c.mu.Lock()
	c.destroyed = true
	c.mu.Unlock()
	if c.cgroup != nil {
		// An error here is no loss: destroy kills again and returns its error.
		_ = c.cgroup.kill()
	}
	deadline := time.NewTimer(eventTimeout)
	defer deadline.Stop()
	for _, p := range c.known() {
		// A process may have left the cgroup, where cgroup.kill does not reach it.
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
