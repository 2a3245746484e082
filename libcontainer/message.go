package libcontainer

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Messages between the parent and the init stage, over one socket pair. The parent sends a
// length and an initConfig as JSON, and later one byte that releases the stage into execve. The
// stage sends frames. Its end of the socket closes at execve, so an end of file without an
// error frame means success.

const (
	frameConsole = 'C' // comes with the descriptor of the pty master
	frameReady   = 'R' // everything is set up; the stage waits for its release
	frameError   = 'E' // the text is the error; the stage ends
	releaseByte  = 'S'

	maxConfigBytes = 16 << 20
	maxFrameBytes  = 64 << 10
)

// initConfig is everything that the init stage knows. The parent makes it from the spec, so
// that the stage has little to parse and nothing to validate: it runs for every process, and
// under emulation each instruction counts.
type initConfig struct {
	// Join: the process starts in an existing container. Then descriptor pidfdFD is a pidfd of
	// a process of the container, or with UserNS its mount namespace; with CgroupNS the next
	// descriptor is its cgroup namespace. Only those fields and Process are set then.
	Join bool `json:"join,omitempty"`
	// UserNS: the stage is in a user namespace and finds the rootfs, binds and devices in the
	// base.
	UserNS bool `json:"userNS,omitempty"`
	// Rehearsal: the stage answers this configuration, does nothing else, and reads the next
	// one.
	Rehearsal bool          `json:"rehearsal,omitempty"`
	Process   processConfig `json:"process"`

	Root       rootConfig      `json:"root,omitzero"`
	Mounts     []mountConfig   `json:"mounts,omitempty"`
	Devices    []deviceConfig  `json:"devices,omitempty"`
	Hostname   string          `json:"hostname,omitempty"`
	Domainname string          `json:"domainname,omitempty"`
	Sysctl     []sysctlConfig  `json:"sysctl,omitempty"`
	Masked     []string        `json:"masked,omitempty"`
	Readonly   []string        `json:"readonly,omitempty"`
	Loopback   bool            `json:"loopback,omitempty"` // bring lo up, because the network namespace is new
	CgroupNS   bool            `json:"cgroupNS,omitempty"` // make a cgroup namespace
	CgroupDir  string          `json:"cgroupDir,omitempty"`
	Hooks      containerHooks  `json:"hooks,omitzero"`
	State      json.RawMessage `json:"state,omitempty"` // JSON that hooks get as stdin
}

type rootConfig struct {
	Dir         string  `json:"dir,omitempty"`
	Readonly    bool    `json:"readonly,omitempty"`
	Propagation uintptr `json:"propagation,omitempty"`
	NoPivot     bool    `json:"noPivot,omitempty"`
	// OwnDev is false if the spec binds a directory on /dev. Then no nodes are made in it.
	OwnDev bool `json:"ownDev,omitempty"`
}

type mountConfig struct {
	Source      string `json:"source,omitempty"`
	From        string `json:"from,omitempty"` // of a bind: the path of its source in the base
	Destination string `json:"destination"`
	Type        string `json:"type,omitempty"`
	mountOptions
}

type deviceConfig struct {
	Path string `json:"path"`
	Mode uint32 `json:"mode"` // permissions and S_IFMT
	Dev  uint64 `json:"dev,omitempty"`
	UID  uint32 `json:"uid,omitempty"`
	GID  uint32 `json:"gid,omitempty"`
	From string `json:"from,omitempty"` // path of the node in the base
}

type sysctlConfig struct {
	File  string `json:"file"` // path below /proc/sys
	Value string `json:"value"`
}

type containerHooks struct {
	CreateContainer []specs.Hook `json:"createContainer,omitempty"`
	StartContainer  []specs.Hook `json:"startContainer,omitempty"`
}

// processConfig is the settings of one process, with names resolved to the kernel's numbers.
type processConfig struct {
	Args         []string        `json:"args"`
	Env          []string        `json:"env,omitempty"`
	Cwd          string          `json:"cwd"`
	UID          uint32          `json:"uid"`
	GID          uint32          `json:"gid"`
	Groups       []uint32        `json:"groups,omitempty"`
	Umask        uint32          `json:"umask"`
	Caps         capSets         `json:"caps,omitzero"`
	NoNewPrivs   bool            `json:"noNewPrivs,omitempty"`
	Rlimits      []rlimitConfig  `json:"rlimits,omitempty"`
	OOMScoreAdj  *int            `json:"oomScoreAdj,omitempty"`
	Scheduler    *unix.SchedAttr `json:"scheduler,omitempty"`
	IOPriority   *int            `json:"ioPriority,omitempty"`
	Affinity     *unix.CPUSet    `json:"affinity,omitempty"` // CPUs that it may run on
	Personality  *uintptr        `json:"personality,omitempty"`
	MemoryPolicy *memoryPolicy   `json:"memoryPolicy,omitempty"`
	Seccomp      *SeccompFilter  `json:"seccomp,omitempty"`
	Terminal     bool            `json:"terminal,omitempty"`
	// BareNewlines: the terminal does not write \r\n for \n.
	BareNewlines bool          `json:"bareNewlines,omitempty"`
	ConsoleSize  *unix.Winsize `json:"consoleSize,omitempty"`
}

type rlimitConfig struct {
	Resource int    `json:"resource"`
	Soft     uint64 `json:"soft"`
	Hard     uint64 `json:"hard"`
}

// writeConfig sends the init stage its configuration.
func writeConfig(w io.Writer, cfg *initConfig) error {
	doc, err := json.Marshal(cfg)
	if err != nil {
		return fmt.Errorf("encode init configuration: %w", err)
	}
	if len(doc) > maxConfigBytes {
		return fmt.Errorf("encode init configuration: %d bytes are more than %d", len(doc), maxConfigBytes)
	}
	msg := binary.BigEndian.AppendUint32(make([]byte, 0, len(doc)+4), uint32(len(doc)))
	if _, err := w.Write(append(msg, doc...)); err != nil {
		return fmt.Errorf("send init configuration: %w", err)
	}
	return nil
}

// readConfig reads what writeConfig has written.
func readConfig(r io.Reader) (*initConfig, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fmt.Errorf("read init configuration: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxConfigBytes {
		return nil, fmt.Errorf("read init configuration: %d bytes are more than %d", n, maxConfigBytes)
	}
	doc, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(doc) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("read init configuration: %w", err)
	}
	cfg := &initConfig{}
	if err := json.Unmarshal(doc, cfg); err != nil {
		return nil, fmt.Errorf("read init configuration: %w", err)
	}
	if len(cfg.Process.Args) == 0 {
		return nil, errors.New("read init configuration: no arguments")
	}
	return cfg, nil
}

// frame is one message from the init stage.
type frame struct {
	kind byte
	text string
	file *os.File // nil if no descriptor came; the receiver closes it
}

// sendFrame writes a frame to the blocking socket sock. fd is sent with it unless it is
// negative.
func sendFrame(sock int, kind byte, text string, fd int) error {
	if len(text) > maxFrameBytes {
		text = text[:maxFrameBytes]
	}
	msg := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(text)))
	msg = append(msg, text...)
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	for len(msg) > 0 {
		n, err := unix.SendmsgN(sock, msg, oob, nil, unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		msg, oob = msg[n:], nil
	}
	return nil
}

// conn is the parent's end of the socket pair.
type conn struct {
	f   *os.File // non-blocking
	raw syscall.RawConn
	// passed is the descriptor that came with the frame that is being read; nil: none.
	passed *os.File
}

// newConn takes f over. f is non-blocking.
func newConn(f *os.File) (*conn, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("connect init stage: %w", err)
	}
	return &conn{f: f, raw: raw}, nil
}

func (c *conn) close() { _ = c.f.Close() }

// Read reads bytes, and keeps in c.passed a descriptor that comes with them.
func (c *conn) Read(p []byte) (n int, err error) {
	oob := make([]byte, unix.CmsgSpace(4))
	var oobn int
	ctlErr := c.raw.Read(func(fd uintptr) bool {
		for {
			n, oobn, _, _, err = unix.Recvmsg(int(fd), p, oob, unix.MSG_CMSG_CLOEXEC)
			if !errors.Is(err, unix.EINTR) {
				return !errors.Is(err, unix.EAGAIN)
			}
		}
	})
	if ctlErr != nil {
		return 0, ctlErr
	}
	if err != nil {
		return 0, err
	}
	if oobn > 0 {
		if err := c.keep(oob[:oobn]); err != nil {
			return 0, err
		}
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (c *conn) keep(oob []byte) error {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) != 1 {
		return fmt.Errorf("receive descriptor: %d control messages: %w", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return fmt.Errorf("receive descriptor: %d of them: %w", len(fds), err)
	}
	// os.NewFile uses the poller only for a non-blocking descriptor, and only then does a Close
	// end a pending Read.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_ = unix.Close(fds[0])
		return fmt.Errorf("receive descriptor: %w", err)
	}
	c.passed = os.NewFile(uintptr(fds[0]), "pty master")
	return nil
}

// next reads one frame. It returns io.EOF if the stage has executed its program or has ended.
func (c *conn) next() (frame, error) {
	var head [5]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		// The kernel resets the connection if a stage is killed before it has read everything.
		if errors.Is(err, unix.ECONNRESET) {
			err = io.EOF
		}
		return frame{}, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxFrameBytes {
		return frame{}, fmt.Errorf("read message of init stage: %d bytes are more than %d", n, maxFrameBytes)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(c, text); err != nil {
		return frame{}, fmt.Errorf("read message of init stage: %w", err)
	}
	f := frame{kind: head[0], text: string(text), file: c.passed}
	c.passed = nil
	return f, nil
}
