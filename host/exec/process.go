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

// Process says what to run: a file does, or the container's own process is changed by
// what is set here, as runc does it.
type Process struct {
	File            string // path of a process as JSON; everything below is ignored then
	Args            []string
	Terminal        bool
	Env             []string // in addition
	Cwd             string   // the fields from here on change nothing where they are empty
	User            string   // UID[:GID]
	AdditionalGIDs  []int64  // in addition
	Capabilities    []string // in addition
	SelinuxLabel    string
	ApparmorProfile string
	NoNewPrivileges *bool
}

// guest is the process for the guest, and what of it is dropped. own is the container's
// own process.
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

// addCapabilities adds to the sets a process can use at once, as runc does: to the
// ambient ones only where the container has inheritable ones, without which there
// are none.
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
