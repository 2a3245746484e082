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

// preparedNamespaces are the new namespaces that nearly every container has. The stage itself
// makes its cgroup namespace.
const preparedNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// Prepared is an init stage that has started and waits, in new namespaces and a cgroup of its
// own, for the container that it becomes. Forking, executing, making a network namespace and
// starting Go's runtime take most of the time of creating a container; in a memory template
// that time is spent once for all clones.
type Prepared struct {
	process  *Process
	pidfd    *os.File
	cgroup   *cgroup
	reaped   atomic.Pointer[cgroup] // cgroup to ask about OOM kills when the stage ends
	kept     *keptNamespaces
	filter   *os.File // the default device filter
	initArgs []string
}

// Prepare starts an init stage in the cgroup cgroupPath below cgroupRoot, and returns when the
// stage waits. initArgs and cgroupRoot mean the same as in Config. The caller gives the result
// to Create, or calls Discard.
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

// rehearsal returns a configuration that resembles that of a container. The stage reads it so
// that the code for reading one has run before the template is saved.
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

// PID returns the waiting process's pid in the caller's pid namespace.
func (p *Prepared) PID() int { return p.process.PID() }

// fits says whether the stage can become the container of this plan.
func (p *Prepared) fits(want *plan) bool {
	return len(want.descriptors) == 0 && want.clone == preparedNamespaces && len(want.joins) == 0 && want.timeNS == nil &&
		want.cgroupRoot == p.cgroup.root && len(want.initArgs) == 1 && want.initArgs[0] == p.initArgs[0]
}

// Discard ends the stage and removes its cgroup. It must not be called after Create got the
// Prepared.
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

// move moves the stage from its own cgroup to the cgroup name. A container without a cgroup
// namespace sees the name of its cgroup, and some programs read from the name which container
// they run in.
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
		// With a terminal the stage opens the pty in place of its stdio.
		c.init.CloseIO()
		c.init.Stdin, c.init.Stdout, c.init.Stderr = nil, nil, nil
	}
	c.plan.init.CgroupDir = p.cgroup.dir
	c.plan.init.Loopback = false // lo is up already
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
