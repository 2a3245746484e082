package libcontainer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// preparedNamespaces are what nearly every container has new ones of. A cgroup
// namespace is the stage's to make, as always.
const preparedNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// Prepared is an init stage that has started and waits, in namespaces and a
// cgroup of its own, for the container it is to become. To fork, to execute, to
// make a network namespace and to start Go's runtime is most of what creating a
// container costs; in a memory template it is paid once for all.
type Prepared struct {
	process  *Process
	pidfd    *os.File
	cgroup   *cgroup
	reaped   atomic.Pointer[cgroup] // what to ask about the stage's end: cgroup
	kept     *kept
	filter   *os.File // of devices: what most containers have
	initArgs []string
}

// Prepare starts a stage in the cgroup cgroupPath below cgroupRoot and returns
// when it waits. initArgs and cgroupRoot are as in Config.
func Prepare(initArgs []string, cgroupRoot, cgroupPath string) (_ *Prepared, err error) {
	p := &Prepared{initArgs: defaultInitArgs(initArgs)}
	if p.cgroup, err = createCgroup(defaultCgroupRoot(cgroupRoot), cgroupPath); err != nil {
		return nil, err
	}
	p.reaped.Store(p.cgroup)
	defer func() {
		if err != nil {
			_ = p.filter.Close() // also of nil
			err = errors.Join(err, p.cgroup.destroy())
		}
	}()
	if p.filter, err = loadFilter(compileFilter(defaultDevices)); err != nil {
		return nil, err
	}
	if err := p.cgroup.attachFilter(unix.BPF_PROG_ATTACH, p.filter); err != nil {
		return nil, err
	}
	p.process, p.pidfd, err = fork(&forkRequest{
		args:      p.initArgs,
		clone:     preparedNamespaces,
		cgroupFD:  int(p.cgroup.file.Fd()),
		oomKilled: func() bool { return p.reaped.Load().oomKilled() },
	})
	if err != nil {
		return nil, err
	}
	if err := p.process.handshake(rehearsal()); err != nil {
		p.process.abandon()
		_ = p.pidfd.Close()
		return nil, err
	}
	if p.kept, err = keepNamespaces(p.PID()); err != nil {
		return nil, errors.Join(err, p.Discard())
	}
	return p, nil
}

// rehearsal is a configuration as a container's, so that the stage has read one
// before it reads its own.
func rehearsal() *initConfig {
	dir := "/"
	return &initConfig{
		Rehearsal: true, Loopback: true,
		Process: processConfig{Args: []string{"true"}, Env: []string{"PATH=/bin"}, Cwd: dir, Groups: []uint32{0}},
		Root:    rootConfig{Dir: dir},
		Mounts:  []mountConfig{{Destination: dir}},
		Devices: []deviceConfig{{Path: dir}},
		Masked:  []string{dir}, Readonly: []string{dir},
		Sysctl: []sysctlConfig{{}}, CgroupDir: dir, Hostname: dir,
	}
}

// PID is the waiting process's number in the caller's pid namespace.
func (p *Prepared) PID() int { return p.process.PID() }

// fits says whether the stage can become the container of a plan.
func (p *Prepared) fits(want *plan) bool {
	return len(want.descriptors) == 0 && want.clone == preparedNamespaces && len(want.joins) == 0 && want.timeNS == nil &&
		want.cgroupRoot == p.cgroup.root && len(want.initArgs) == 1 && want.initArgs[0] == p.initArgs[0]
}

// Discard ends the stage and removes its cgroup.
func (p *Prepared) Discard() error {
	p.process.abandon()
	_ = p.pidfd.Close()
	p.kept.close()
	_ = p.filter.Close()
	if err := p.cgroup.destroy(); err != nil {
		return fmt.Errorf("discard prepared container: %w", err)
	}
	return nil
}

// move puts the stage into the cgroup name instead of its own. A container without a
// cgroup namespace sees what its cgroup is called, and there are programs that
// learn from it in what they run.
func (p *Prepared) move(name string) (err error) {
	to, err := createCgroup(p.cgroup.root, name)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, to.destroy())
		}
	}()
	if err := to.attachFilter(unix.BPF_PROG_ATTACH, p.filter); err != nil {
		return err
	}
	if err := to.write("cgroup.procs", strconv.Itoa(p.PID())); err != nil {
		return err
	}
	from := p.cgroup
	p.cgroup = to
	p.reaped.Store(to)
	return from.destroy()
}

// take makes the stage the first process of c.
func (p *Prepared) take(c *Container) {
	c.init, c.pidfd, c.cgroup, c.kept, c.filter = p.process, p.pidfd, p.cgroup, p.kept, p.filter
	if c.plan.mayHoldFiles() {
		c.kept.closeMounts()
	}
	c.init.forked = time.Now()
	if c.plan.init.Process.Terminal {
		// The stage puts the terminal in their place.
		c.init.CloseIO()
		c.init.Stdin, c.init.Stdout, c.init.Stderr = nil, nil, nil
	}
	c.plan.init.CgroupDir = p.cgroup.dir
	c.plan.init.Loopback = false // it is up
}

func defaultInitArgs(args []string) []string {
	if len(args) == 0 {
		return []string{"/proc/self/exe"}
	}
	return args
}

func defaultCgroupRoot(root string) string {
	if root == "" {
		return DefaultCgroupRoot
	}
	return filepath.Clean(root)
}
