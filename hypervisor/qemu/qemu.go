// Package qemu runs virtual machines with QEMU: machine type microvm, controlled over QMP. QEMU
// gets everything it needs as open descriptors.
//
// The caller closes Channel().Serial. What the guest wrote last can be read from it after the
// VM has ended.
package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/log"

	"github.com/huskvm/husk/host/distro"
	"github.com/huskvm/husk/host/timings"
	"github.com/huskvm/husk/hypervisor"
	"github.com/huskvm/husk/linux/syscalls"
)

const (
	// The guest's console gets 56 KiB of the 64 KiB that Console returns, so that a guest that
	// floods it does not push out what QEMU itself has printed.
	consoleSize = 56 << 10
	stderrSize  = 8 << 10

	// startTimeout ends a QEMU that neither answers nor exits. It normally answers in 50 ms;
	// the rest is for a machine that swaps.
	startTimeout = 30 * time.Second

	// drainTimeout bounds how long the pipes of an ended vmm may stay open. They end with it,
	// unless another process has them open.
	drainTimeout = time.Second
)

// New returns a Starter of QEMU machines.
func New() hypervisor.Starter { return starter{host: thisHost} }

type starter struct{ host host }

// vm implements hypervisor.VM.
type vm struct {
	proc    *process
	qmp     *qmp
	channel hypervisor.Channel
	greeted greeting
	console *ring
	stderr  *ring
	watch   *watcher

	stopping atomic.Bool
	noTimer  atomic.Bool            // the guest's kernel has said so
	shutdown atomic.Pointer[string] // reason of QMP's SHUTDOWN event
	marks    marks
	devices  string // path of the file that Save writes
	needs    hypervisor.Needs
	share    string // the share's directory, "" for none
	done     chan struct{}
	err      error // set before done is closed
}

// resources are the files that Start has opened. The vmm's ends are closed in any case when it
// runs, and our ends only if Start fails.
type resources struct {
	theirs []*os.File
	ours   []io.Closer
}

func (r *resources) closeTheirs() {
	for _, f := range r.theirs {
		// The vmm has its own duplicate, and nothing was written here.
		f.Close()
	}
	r.theirs = nil
}

func (r *resources) closeAll() {
	r.closeTheirs()
	for _, c := range r.ours {
		// The error that made this necessary is the one to report.
		c.Close()
	}
}

// Start implements hypervisor.Starter.
func (s starter) Start(ctx context.Context, cfg hypervisor.Config) (hypervisor.VM, error) {
	if err := check(cfg); err != nil {
		return nil, fmt.Errorf("start vm: %w", err)
	}
	v, err := s.launch(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("start vm: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("qemu did not answer within %v", startTimeout))
	defer cancel()
	v.greeted, err = v.qmp.negotiate(ctx)
	timings.Lap(ctx, "vmm spawn")
	if err == nil {
		err = v.greeted.Version.QEMU.check()
	}
	if s := v.watch.special; err == nil && s != nil {
		s.fixed.Store(v.greeted.Version.QEMU.Major >= fixedSince)
	}
	if r := v.watch.ram; err == nil && r != nil {
		err = r.check()
	}
	if err == nil {
		err = v.proc.confine(cfg.ShareDir)
		timings.Lap(ctx, "confine vmm")
	}
	if err == nil {
		if s := v.watch.start; s != nil {
			s.over.Store(true)
		}
		v.noteNeeds(cfg)
		err = v.run(ctx, cfg)
	}
	if err == nil {
		return v, nil
	}

	if errors.Is(err, errQMPClosed) {
		// QEMU is ending by itself. What it prints and its exit status explain more than a kill
		// would, so it gets time for them.
		select {
		case <-v.done:
			// The connection's end is a consequence, not the cause.
			err = fmt.Errorf("%s ended at once: %s", cfg.Binary, v.proc.state)
			if intruded := v.watch.intrusion(); intruded != nil {
				err = intruded
			}
		case <-time.After(drainTimeout):
		}
	}
	stopErr := errors.Join(v.Stop(), v.channel.Serial.Close())
	return nil, errors.Join(fmt.Errorf("start vm: %w", v.startError(err, cfg)), stopErr)
}

// run starts the guest. Before it QEMU executes no instruction of the guest.
func (v *vm) run(ctx context.Context, cfg hypervisor.Config) error {
	v.watch.guestRuns.Store(true)
	if !isClone(cfg) {
		return v.qmp.Execute(ctx, "cont", nil, nil)
	}
	defer timings.Lap(ctx, "restore")
	return v.restore(ctx, cfg.DeviceState)
}

// launch starts QEMU and everything that reads from it.
func (s starter) launch(ctx context.Context, cfg hypervisor.Config) (_ *vm, err error) {
	var e ends
	defer func() {
		if err != nil {
			e.closeAll()
		}
	}()
	h, err := s.connect(cfg, &e)
	if err != nil {
		return nil, err
	}
	output, err := e.pipe()
	if err != nil {
		return nil, err
	}
	watch, err := watchFor(cfg, e.inherit)
	if err != nil {
		return nil, err
	}
	tscKHz := 0
	if cfg.Accel == hypervisor.TCG {
		tscKHz = s.host.tscKHz()
	}
	// Last of all, as the numbers of all descriptors are in the command line.
	l := &launch{cfg: cfg, argv: newMachine(cfg, h, tscKHz).argv, files: e.files, output: output, watch: watch}
	proc, err := l.start()
	log.G(ctx).Debugf("vmm: %s", commandLine(l.args))
	if err != nil {
		return nil, explainStart(err)
	}
	// Or the end of QEMU would not be the end of what we read.
	e.closeTheirs()
	v := &vm{
		proc: proc, channel: hypervisor.Channel{Serial: e.channel, VsockCID: h.vsockCID},
		console: newRing(consoleSize), stderr: newRing(stderrSize),
		done: make(chan struct{}), marks: newMarks(), devices: cfg.DeviceState, watch: watch,
		share: cfg.ShareDir,
	}
	v.qmp = newQMP(e.qmp, v.event)
	v.read(e.console, e.output, cfg.Accel == hypervisor.TCG && !isClone(cfg))
	return v, nil
}

// ends are both ends of everything between QEMU and this process.
type ends struct {
	resources
	qmp, console, channel net.Conn
	output                *os.File
	files                 []*os.File // those that QEMU inherits, from descriptor 3 on
}

// inherit returns the number that a file will have in QEMU.
func (e *ends) inherit(f *os.File) int {
	e.files = append(e.files, f)
	return 2 + len(e.files)
}

// socket returns our end of a socket, and the number of QEMU's.
func (e *ends) socket(name string) (net.Conn, int, error) {
	near, far, err := syscalls.SocketPairConn(name)
	if err != nil {
		return nil, 0, fmt.Errorf("make socket pair of %s: %w", name, err)
	}
	e.ours, e.theirs = append(e.ours, near), append(e.theirs, far)
	return near, e.inherit(far), nil
}

// pipe makes the pipe for what QEMU says, and returns QEMU's end.
func (e *ends) pipe() (*os.File, error) {
	near, far, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe for vmm output: %w", err)
	}
	e.ours, e.theirs, e.output = append(e.ours, near), append(e.theirs, far), near
	return far, nil
}

// connect makes the sockets, and opens for QEMU what its configuration names.
func (s starter) connect(cfg hypervisor.Config, e *ends) (h handles, err error) {
	h.vhost = -1
	if e.qmp, h.qmp, err = e.socket("qmp"); err != nil {
		return h, err
	}
	if e.console, h.console, err = e.socket("console"); err != nil {
		return h, err
	}
	if e.channel, h.channel, err = e.socket("agent channel"); err != nil {
		return h, err
	}
	if cfg.Vsock {
		f, cid, err := reserveCID(s.host.vhostVsock, setGuestCID)
		if err != nil {
			return h, err
		}
		e.theirs = append(e.theirs, f)
		h.vhost, h.vsockCID = e.inherit(f), cid
	}
	h.lend(cfg, e.inherit)
	return h, nil
}

// explainStart says what to do where there is no QEMU.
func explainStart(err error) error {
	var failed *os.SyscallError
	if errors.As(err, &failed) && failed.Syscall == "exec" && errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s", err, distro.Install(distro.QEMU))
	}
	return err
}

// read keeps the last of what the guest and QEMU say, until QEMU has ended. If the guest boots
// under emulation, read ends QEMU when the guest says that it has no timer. A guest that lies
// ends nothing but itself.
func (v *vm) read(console net.Conn, output *os.File, boots bool) {
	var readers sync.WaitGroup
	readers.Add(2)
	said := io.Writer(v.console)
	if boots {
		said = io.MultiWriter(v.console, &finder{text: noTimerText, found: v.endWithoutTimer})
	}
	go drain(said, console, &readers)
	go drain(v.stderr, output, &readers)
	go v.reap(&readers, console, output)
}

func (v *vm) endWithoutTimer() {
	v.noTimer.Store(true)
	//nolint:errcheck // QEMU has ended then.
	v.proc.kill()
}

// deadliner is implemented by connections and pipes.
type deadliner interface {
	io.Closer
	SetReadDeadline(t time.Time) error
}

// reap waits until the process has ended and everything that it wrote is read, so that Err and
// Console know its last words.
func (v *vm) reap(readers *sync.WaitGroup, outputs ...deadliner) {
	<-v.proc.exited
	deadline := time.Now().Add(drainTimeout)
	for _, o := range append(outputs, v.qmp.conn) {
		//nolint:errcheck // it fails only on what is closed, whose reader has ended.
		o.SetReadDeadline(deadline)
	}
	readers.Wait()
	<-v.qmp.ended
	for _, o := range append(outputs, v.qmp.conn) {
		// They have been read to their end.
		o.Close()
	}
	<-v.watch.ended
	if !v.stopping.Load() || v.noTimer.Load() {
		v.err = v.endError()
	}
	close(v.done)
}

// event handles an event of QMP: it notes the reason why the machine stops, which QEMU sends
// just before it exits, and wakes restore and Save.
func (v *vm) event(name string, data json.RawMessage) {
	v.marks.note(name, data)
	if name != "SHUTDOWN" {
		return
	}
	var shutdown struct {
		Reason string `json:"reason"`
	}
	if err := json.Unmarshal(data, &shutdown); err == nil {
		v.shutdown.Store(&shutdown.Reason)
	}
}

// endError describes why the process has ended.
func (v *vm) endError() error {
	reason := ""
	if r := v.shutdown.Load(); r != nil {
		reason = *r
	}
	state := v.proc.state
	if err := v.watch.intrusion(); err != nil {
		return err
	}
	switch {
	case v.noTimer.Load():
		return hypervisor.ErrNoTimer
	case reason == "guest-reset":
		// With -no-reboot and the kernel's panic=-1 a panic ends QEMU in this way.
		if line := panicLine(v.console.text()); line != "" {
			return fmt.Errorf("guest kernel panicked: %q", line)
		}
		return errors.New("guest panicked or rebooted")
	case reason == "guest-shutdown":
		return errors.New("guest powered itself off")
	case reason == "guest-panic":
		return errors.New("guest panicked")
	case state == nil:
		return fmt.Errorf("vmm ended, how is unknown: %w", v.proc.err)
	}
	return withOutput(fmt.Errorf("vmm ended: %s", state), v.stderr)
}

// startError describes why Start failed, with what QEMU has printed and what the user can do.
func (v *vm) startError(err error, cfg hypervisor.Config) error {
	said := v.stderr.text()
	err = withOutput(err, v.stderr)
	switch {
	case strings.Contains(said, "Cannot allocate memory"):
		return fmt.Errorf("%w: give the guest less than %d MiB or the host more", err, cfg.MemoryMiB)
	case cfg.Accel == hypervisor.KVM && strings.Contains(said, "KVM"):
		return fmt.Errorf("%w: set accel to auto or tcg, or repair /dev/kvm", err)
	case strings.Contains(said, "not a valid device model name"), strings.Contains(said, "unsupported machine type"):
		return fmt.Errorf("%w: %s", err, distro.Install(distro.QEMU))
	}
	return err
}

func withOutput(err error, output *ring) error {
	if tail := lastLines(output.text(), 3, 1000); tail != "" {
		return fmt.Errorf("%w: %s", err, tail)
	}
	return err
}

// Channel implements hypervisor.VM.
func (v *vm) Channel() hypervisor.Channel { return v.channel }

// Needs implements hypervisor.VM.
func (v *vm) Needs() hypervisor.Needs { return v.needs }

// SealShare implements hypervisor.VM.
func (v *vm) SealShare() error { return v.proc.sealShare(v.share) }

// Info implements hypervisor.VM.
func (v *vm) Info(ctx context.Context) (hypervisor.Info, error) {
	var kvm struct {
		Enabled bool `json:"enabled"`
	}
	if err := v.qmp.Execute(ctx, "query-kvm", nil, &kvm); err != nil {
		return hypervisor.Info{}, fmt.Errorf("ask vmm: %w", err)
	}
	info := hypervisor.Info{HostPID: v.proc.proc.Pid, Accel: hypervisor.TCG}
	if kvm.Enabled {
		info.Accel = hypervisor.KVM
	}
	return info, nil
}

// Console implements hypervisor.VM.
func (v *vm) Console() string {
	text := v.console.text()
	stderr := v.stderr.text()
	if text != "" && stderr != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return text + stderr
}

// Done implements hypervisor.VM.
func (v *vm) Done() <-chan struct{} { return v.done }

// Err implements hypervisor.VM.
func (v *vm) Err() error {
	select {
	case <-v.done:
		return v.err
	default:
		return nil
	}
}

// Stop implements hypervisor.VM.
func (v *vm) Stop() error {
	select {
	case <-v.done: // the reason for its end stays
		return nil
	default:
	}
	v.stopping.Store(true)
	err := v.proc.kill()
	if err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	<-v.done
	return nil
}
