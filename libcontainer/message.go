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

// What goes between the parent and the init stage, over one socket pair: down,
// a length and an initConfig as JSON, then one byte to release the stage into
// execve; up, frames. The socket closes at execve: end of file means success.

const (
	frameConsole = 'C' // with the pty master's descriptor
	frameReady   = 'R' // all is set up
	frameError   = 'E' // with the text of the error; the stage ends
	releaseByte  = 'S'

	maxConfigBytes = 16 << 20
	maxFrameBytes  = 64 << 10
)

// initConfig is all the init stage knows. It is made from the spec by the
// parent, so that the stage, which runs for every process and in emulation as
// the case may be, parses and validates as little as possible.
type initConfig struct {
	// Join is set for a process in an existing container: descriptor pidfdFD is
	// a pidfd of one of its processes, or with UserNS its mount namespace, and with
	// CgroupNS the next one its cgroup namespace. All but those and Process is unset
	// then.
	Join bool `json:"join,omitempty"`
	// UserNS: the stage is in a user namespace, and sets up from the base.
	UserNS bool `json:"userNS,omitempty"`
	// Rehearsal is answered and no more: the next one is read.
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
	Loopback   bool            `json:"loopback,omitempty"` // bring lo up: the network namespace is new
	CgroupNS   bool            `json:"cgroupNS,omitempty"` // make one
	CgroupDir  string          `json:"cgroupDir,omitempty"`
	Hooks      containerHooks  `json:"hooks,omitzero"`
	State      json.RawMessage `json:"state,omitempty"` // hooks' stdin
}

type rootConfig struct {
	Dir         string  `json:"dir,omitempty"`
	Readonly    bool    `json:"readonly,omitempty"`
	Propagation uintptr `json:"propagation,omitempty"`
	NoPivot     bool    `json:"noPivot,omitempty"`
	// OwnDev is false where the spec binds a /dev, whose nodes are not ours to make.
	OwnDev bool `json:"ownDev,omitempty"`
}

type mountConfig struct {
	Source      string `json:"source,omitempty"`
	From        string `json:"from,omitempty"` // of a bind: where the source is in the base
	Destination string `json:"destination"`
	Type        string `json:"type,omitempty"`
	mountOptions
}

type deviceConfig struct {
	Path string `json:"path"`
	Mode uint32 `json:"mode"` // with S_IFMT
	Dev  uint64 `json:"dev,omitempty"`
	UID  uint32 `json:"uid,omitempty"`
	GID  uint32 `json:"gid,omitempty"`
	From string `json:"from,omitempty"` // where the node is in the base
}

type sysctlConfig struct {
	File  string `json:"file"` // below /proc/sys
	Value string `json:"value"`
}

type containerHooks struct {
	CreateContainer []specs.Hook `json:"createContainer,omitempty"`
	StartContainer  []specs.Hook `json:"startContainer,omitempty"`
}

// processConfig is the settings of one process, resolved to the kernel's numbers.
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
	Affinity     *unix.CPUSet    `json:"affinity,omitempty"` // CPUs
	Personality  *uintptr        `json:"personality,omitempty"`
	MemoryPolicy *memoryPolicy   `json:"memoryPolicy,omitempty"`
	Seccomp      *SeccompFilter  `json:"seccomp,omitempty"`
	Terminal     bool            `json:"terminal,omitempty"`
	// BareNewlines: the terminal does not make \r\n of \n.
	BareNewlines bool          `json:"bareNewlines,omitempty"`
	ConsoleSize  *unix.Winsize `json:"consoleSize,omitempty"`
}

type rlimitConfig struct {
	Resource int    `json:"resource"`
	Soft     uint64 `json:"soft"`
	Hard     uint64 `json:"hard"`
}

// writeConfig sends the stage its configuration.
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

// readConfig is the stage's side of writeConfig.
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

// frame is one message of the stage.
type frame struct {
	kind byte
	text string
	file *os.File // the receiver's to close; nil if none came
}

// sendFrame writes a frame to the blocking socket sock, with fd if it is not negative.
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
	f   *os.File // not blocking
	raw syscall.RawConn
	// passed is the descriptor that came with the frame being read.
	passed *os.File
}

func newConn(fd int) (*conn, error) {
	f := os.NewFile(uintptr(fd), "init stage")
	raw, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("connect init stage: %w", err)
	}
	return &conn{f: f, raw: raw}, nil
}

func (c *conn) close() { _ = c.f.Close() }

// Read keeps a descriptor that comes with the bytes in c.passed.
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
	// Not blocking before os.NewFile: the file then uses the poller, and a Close
	// ends a Read.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_ = unix.Close(fds[0])
		return fmt.Errorf("receive descriptor: %w", err)
	}
	c.passed = os.NewFile(uintptr(fds[0]), "pty master")
	return nil
}

// next reads one frame; io.EOF says that the stage has gone into execve or ended.
func (c *conn) next() (frame, error) {
	var head [5]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		// A stage that is killed with our bytes unread resets the connection.
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
