package specconv

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/protocol"
)

const (
	// maxGroups is the kernel's NGROUPS_MAX.
	maxGroups = 65536
	// maxConsole is the largest number of rows or columns in struct winsize.
	maxConsole = math.MaxUint16
	// noID is (uid_t)-1, which for setuid(2) and chown(2) means "do not change".
	noID = math.MaxUint32
	// maxRequest leaves room for the other fields of the agent's create request.
	maxRequest = protocol.MaxMessage - 64<<10
)

// rlimitNames are the limits of getrlimit(2).
var rlimitNames = map[string]bool{
	"RLIMIT_AS": true, "RLIMIT_CORE": true, "RLIMIT_CPU": true, "RLIMIT_DATA": true,
	"RLIMIT_FSIZE": true, "RLIMIT_LOCKS": true, "RLIMIT_MEMLOCK": true, "RLIMIT_MSGQUEUE": true,
	"RLIMIT_NICE": true, "RLIMIT_NOFILE": true, "RLIMIT_NPROC": true, "RLIMIT_RSS": true,
	"RLIMIT_RTPRIO": true, "RLIMIT_RTTIME": true, "RLIMIT_SIGPENDING": true, "RLIMIT_STACK": true,
}

var capabilityNames = sync.OnceValue(func() map[string]bool {
	names := map[string]bool{}
	for _, c := range capability.ListKnown() {
		names["CAP_"+strings.ToUpper(c.String())] = true
	}
	return names
})

// ConvertProcess checks a process, of a spec or of exec, and returns the agent's, built field
// by field, with a warning for each field that is dropped.
func ConvertProcess(p *specs.Process) (*specs.Process, []string, error) {
	if err := validateProcess(p); err != nil {
		return nil, nil, err
	}
	guest := &specs.Process{
		Terminal:        p.Terminal,
		User:            guestUser(p.User),
		Args:            p.Args,
		Env:             p.Env,
		Cwd:             filepath.Clean(p.Cwd),
		Rlimits:         p.Rlimits,
		NoNewPrivileges: p.NoNewPrivileges,
		OOMScoreAdj:     p.OOMScoreAdj,
	}
	if p.Terminal && p.ConsoleSize != nil {
		guest.ConsoleSize = &specs.Box{Height: p.ConsoleSize.Height, Width: p.ConsoleSize.Width}
	}
	if a := p.ExecCPUAffinity; a != nil && *a != (specs.CPUAffinity{}) {
		guest.ExecCPUAffinity = &specs.CPUAffinity{Initial: a.Initial, Final: a.Final}
	}
	if c := p.Scheduler; c != nil {
		guest.Scheduler = &specs.Scheduler{
			Policy: c.Policy, Nice: c.Nice, Priority: c.Priority, Flags: c.Flags,
			Runtime: c.Runtime, Deadline: c.Deadline, Period: c.Period,
		}
	}
	if c := p.IOPriority; c != nil {
		guest.IOPriority = &specs.LinuxIOPriority{Class: c.Class, Priority: c.Priority}
	}
	if c := p.Capabilities; c != nil {
		guest.Capabilities = &specs.LinuxCapabilities{
			Bounding:    c.Bounding,
			Effective:   c.Effective,
			Inheritable: c.Inheritable,
			Permitted:   c.Permitted,
			Ambient:     c.Ambient,
		}
	}
	var w warnings
	w.ambient(guest.Capabilities)
	w.dropIf(p.ApparmorProfile != "", "process.apparmorProfile", "the guest has no AppArmor policy")
	w.dropIf(p.SelinuxLabel != "", "process.selinuxLabel", "the guest has no SELinux policy")
	w.dropIf(p.CommandLine != "", "process.commandLine", "it is for Windows")
	w.dropIf(p.User.Username != "", "process.user.username", "it is for Windows")
	if err := checkRequestSize("process", guest); err != nil {
		return nil, nil, err
	}
	return guest, w, nil
}

// ambient warns of ambient capabilities that the kernel will not raise (capabilities(7)). The
// text begins with runc's words.
func (w *warnings) ambient(c *specs.LinuxCapabilities) {
	if c == nil {
		return
	}
	var names []string
	for _, name := range c.Ambient {
		if !slices.Contains(c.Permitted, name) || !slices.Contains(c.Inheritable, name) {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		w.addf("process.capabilities.ambient", "can't raise ambient capability %s: not in permitted and inheritable", strings.Join(names, ", "))
	}
}

// checkRequestSize refuses what would be too large for the agent channel. There it would fail
// when the VM is running, with an error that names no field.
func checkRequestSize(field string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s for the guest: %w", field, err)
	}
	if len(b) > maxRequest {
		return fieldErrorf(field, "%d bytes of JSON are more than the %d the guest takes", len(b), maxRequest)
	}
	return nil
}

func guestUser(u specs.User) specs.User {
	return specs.User{UID: u.UID, GID: u.GID, Umask: u.Umask, AdditionalGids: u.AdditionalGids}
}

func validateProcess(p *specs.Process) error {
	switch {
	case p == nil:
		return errors.New("process property must not be empty")
	case p.Cwd == "":
		return fieldErrorf("process.cwd", "Cwd property must not be empty")
	case !filepath.IsAbs(p.Cwd):
		return fieldErrorf("process.cwd", "Cwd must be an absolute path")
	case len(p.Args) == 0:
		return fieldErrorf("process.args", "args must not be empty")
	}
	if err := checkNUL(reflect.ValueOf(p), "process"); err != nil {
		return err
	}
	for i, e := range p.Env {
		name, _, found := strings.Cut(e, "=")
		if !found {
			return fieldErrorf(index("process.env", i), "invalid environment variable: %s", quote(e))
		}
		if name == "" {
			return fieldErrorf(index("process.env", i), "environment variable name can't be empty: %s", quote(e))
		}
	}
	for _, check := range []func(*specs.Process) error{
		validateUser, validateCapabilities, validateRlimits, validateConsole, validateScheduler, validateAffinity, validateIOPriority,
	} {
		if err := check(p); err != nil {
			return err
		}
	}
	return nil
}

func validateUser(p *specs.Process) error {
	u := p.User
	if u.UID == noID {
		return fieldErrorf("process.user.uid", "%d is not a user id", u.UID)
	}
	if u.GID == noID {
		return fieldErrorf("process.user.gid", "%d is not a group id", u.GID)
	}
	if u.Umask != nil && *u.Umask > 0o777 {
		return fieldErrorf("process.user.umask", "%#o is not between 0 and 0777", *u.Umask)
	}
	if n := len(u.AdditionalGids); n > maxGroups {
		return fieldErrorf("process.user.additionalGids", "%d groups are more than the kernel's %d", n, maxGroups)
	}
	for i, g := range u.AdditionalGids {
		if g == noID {
			return fieldErrorf(index("process.user.additionalGids", i), "%d is not a group id", g)
		}
	}
	if p.OOMScoreAdj != nil && (*p.OOMScoreAdj < -1000 || *p.OOMScoreAdj > 1000) {
		return fieldErrorf("process.oomScoreAdj", "%d is not between -1000 and 1000", *p.OOMScoreAdj)
	}
	return nil
}

// validateCapabilities refuses unknown names, as the spec asks. runc only warns, and then a
// misspelt capability seems to be granted.
func validateCapabilities(p *specs.Process) error {
	c := p.Capabilities
	if c == nil {
		return nil
	}
	for _, set := range []struct {
		name string
		caps []string
	}{
		{"bounding", c.Bounding},
		{"effective", c.Effective},
		{"inheritable", c.Inheritable},
		{"permitted", c.Permitted},
		{"ambient", c.Ambient},
	} {
		for i, name := range set.caps {
			if !capabilityNames()[name] {
				return fieldErrorf(index("process.capabilities."+set.name, i), "unknown capability %s", quote(name))
			}
		}
	}
	return nil
}

func validateRlimits(p *specs.Process) error {
	seen := map[string]bool{}
	for i, r := range p.Rlimits {
		field := index("process.rlimits", i)
		switch {
		case !rlimitNames[r.Type]:
			return fieldErrorf(field+".type", "wrong rlimit value: %s", quote(r.Type))
		case seen[r.Type]:
			return fieldErrorf(field+".type", "duplicate rlimit %s", r.Type)
		case r.Soft > r.Hard:
			return fieldErrorf(field+".soft", "%d is above the hard limit %d of %s", r.Soft, r.Hard, r.Type)
		}
		seen[r.Type] = true
	}
	return nil
}

func validateConsole(p *specs.Process) error {
	if !p.Terminal || p.ConsoleSize == nil {
		return nil // without a terminal the spec says to ignore the size
	}
	if p.ConsoleSize.Height > maxConsole || p.ConsoleSize.Width > maxConsole {
		return fieldErrorf("process.consoleSize", "%d rows of %d columns: a terminal has at most %d of each",
			p.ConsoleSize.Height, p.ConsoleSize.Width, maxConsole)
	}
	return nil
}
