package exec

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/caller"
	"github.com/huskvm/husk/host/specconv"
)

// Process says what to run: the process in a file, or the container's own process with the
// changes below, as with runc.
type Process struct {
	File            string // path of a process as JSON; then all fields below are ignored
	Args            []string
	Terminal        bool
	Env             []string // added to the environment
	Cwd             string   // this and the following fields change nothing if they are empty
	User            string   // UID[:GID]
	AdditionalGIDs  []int64  // added to the groups
	Capabilities    []string // added to the sets
	SelinuxLabel    string
	ApparmorProfile string
	NoNewPrivileges *bool
}

// guest returns the process for the guest, and a warning for each field that is dropped. own is
// the container's own process.
func (p *Process) guest(own *specs.Process) (_ *specs.Process, warnings []string, err error) {
	var asked *specs.Process
	if p.File != "" {
		asked, err = specconv.LoadProcess(p.File)
	} else {
		asked, err = p.change(own)
	}
	if err != nil {
		return nil, nil, err
	}
	guest, warnings, err := specconv.ConvertProcess(asked)
	if err != nil {
		return nil, nil, err
	}
	limits, err := caller.Rlimits()
	if err != nil {
		return nil, nil, err
	}
	specconv.InheritRlimits(guest, limits)
	return guest, warnings, nil
}

func (p *Process) change(own *specs.Process) (*specs.Process, error) {
	if len(p.Args) == 0 {
		return nil, errors.New("process args cannot be empty")
	}
	if own == nil {
		return nil, errors.New("the container's own process is not known: use --process")
	}
	changed := *own
	changed.Args = p.Args
	changed.Terminal = p.Terminal
	changed.ConsoleSize = nil
	changed.Env = append(append([]string{}, own.Env...), p.Env...)
	if p.Cwd != "" {
		changed.Cwd = p.Cwd
	}
	if p.SelinuxLabel != "" {
		changed.SelinuxLabel = p.SelinuxLabel
	}
	if p.ApparmorProfile != "" {
		changed.ApparmorProfile = p.ApparmorProfile
	}
	if p.NoNewPrivileges != nil {
		changed.NoNewPrivileges = *p.NoNewPrivileges
	}
	addCapabilities(&changed, p.Capabilities)
	if err := setUser(&changed, p.User); err != nil {
		return nil, err
	}
	for _, gid := range p.AdditionalGIDs {
		if gid < 0 || gid > int64(^uint32(0)) {
			return nil, fmt.Errorf("additional gid %d is out of range", gid)
		}
		changed.User.AdditionalGids = append(append([]uint32{}, changed.User.AdditionalGids...), uint32(gid))
	}
	return &changed, nil
}

// addCapabilities adds to the sets that a process can use at once, as runc does. It adds to the
// ambient set only if the container has inheritable capabilities, because the kernel allows
// none otherwise.
func addCapabilities(p *specs.Process, names []string) {
	if len(names) == 0 {
		return
	}
	caps := specs.LinuxCapabilities{}
	if p.Capabilities != nil {
		caps = *p.Capabilities
	}
	sets := []*[]string{&caps.Bounding, &caps.Effective, &caps.Permitted}
	if caps.Inheritable != nil {
		sets = append(sets, &caps.Ambient)
	}
	for _, set := range sets {
		*set = append(append([]string{}, *set...), names...)
	}
	p.Capabilities = &caps
}

func setUser(p *specs.Process, s string) error {
	if s == "" {
		return nil
	}
	uid, gid, hasGID := strings.Cut(s, ":")
	n, err := strconv.ParseUint(uid, 10, 32)
	if err != nil {
		return fmt.Errorf("parsing %s as int for uid failed: %w", uid, err)
	}
	p.User.UID = uint32(n)
	if !hasGID {
		return nil
	}
	if n, err = strconv.ParseUint(gid, 10, 32); err != nil {
		return fmt.Errorf("parsing %s as int for gid failed: %w", gid, err)
	}
	p.User.GID = uint32(n)
	return nil
}
