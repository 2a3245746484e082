// Package seccomp compiles the system call filter of config.json into the program that the
// kernel runs. The program may differ from that of runc with libseccomp, but gives the same
// answer for every system call. The package has no side effects: the filter is compiled on the
// host, and the agent loads it.
package seccomp

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	// maxErrno is the kernel's MAX_ERRNO. User space does not see higher values as errors.
	maxErrno = 4095
	// maxData is the largest number that a filter can pass to a tracer.
	maxData = unix.SECCOMP_RET_DATA
	// maxInstructions is the kernel's BPF_MAXINSNS.
	maxInstructions = 4096
	// maxArgs is the number of arguments of a system call.
	maxArgs = 6
)

// Filter holds the arguments of seccomp(2).
type Filter struct {
	// Program is at most 4096 instructions, each a struct sock_filter of 8 bytes,
	// little-endian.
	Program []byte
	// Flags are SECCOMP_FILTER_FLAG_* bits.
	Flags uint32
}

// Compile returns the filter for linux.seccomp, or nil if it asks for none. An error is one
// line that begins with the field's JSON path. As with runc, names of system calls that no
// architecture of the filter has are ignored, because profiles are written for many machines.
func Compile(s *specs.LinuxSeccomp) (*Filter, error) {
	if s == nil {
		return nil, nil
	}
	const field = "linux.seccomp"
	switch {
	case s.ListenerPath != "":
		return nil, fieldErrorf(field+".listenerPath", "notification of a process on the host is not supported: the system calls are made in a virtual machine")
	case s.ListenerMetadata != "":
		return nil, fieldErrorf(field+".listenerMetadata", "notification of a process on the host is not supported: the system calls are made in a virtual machine")
	case s.DefaultAction == "" && len(s.Syscalls) == 0:
		return nil, nil // runc treats this as no filter
	}
	p := policy{enosys: newerCalls(s.DefaultAction)}
	var err error
	if p.fallback, err = returnValue(field+".defaultAction", s.DefaultAction, field+".defaultErrnoRet", s.DefaultErrnoRet); err != nil {
		return nil, err
	}
	if p.machines, err = machines(s.Architectures); err != nil {
		return nil, err
	}
	flags, err := filterFlags(s.Flags)
	if err != nil {
		return nil, err
	}
	for i, call := range s.Syscalls {
		if err := p.add(fmt.Sprintf("%s.syscalls[%d]", field, i), &call); err != nil {
			return nil, err
		}
	}
	program, err := assemble(p.code())
	if err != nil {
		return nil, err
	}
	return &Filter{Program: program, Flags: flags}, nil
}

// fieldErrorf returns an error about one field of config.json, named by its JSON path.
func fieldErrorf(field, format string, args ...any) error {
	return fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...))
}

// quote formats a value of any length like %q and cuts it.
func quote[S ~string](v S) string {
	const most = 200
	if len(v) > most {
		return fmt.Sprintf("%q...", v[:most])
	}
	return fmt.Sprintf("%q", v)
}

// returnValue returns what the program returns for an action.
func returnValue(field string, a specs.LinuxSeccompAction, errnoField string, errno *uint) (uint32, error) {
	var most uint
	var ret uint32
	switch a {
	case "":
		return 0, fieldErrorf(field, "must not be empty")
	case specs.ActKill, specs.ActKillThread:
		ret = unix.SECCOMP_RET_KILL_THREAD
	case specs.ActKillProcess:
		ret = unix.SECCOMP_RET_KILL_PROCESS
	case specs.ActTrap:
		ret = unix.SECCOMP_RET_TRAP
	case specs.ActErrno:
		ret, most = unix.SECCOMP_RET_ERRNO, maxErrno
	case specs.ActTrace:
		ret, most = unix.SECCOMP_RET_TRACE, maxData
	case specs.ActLog:
		ret = unix.SECCOMP_RET_LOG
	case specs.ActAllow:
		ret = unix.SECCOMP_RET_ALLOW
	case specs.ActNotify:
		return 0, fieldErrorf(field, "%s is not supported: the system calls are made in a virtual machine, where the listener on the host can't answer for them", a)
	default:
		return 0, fieldErrorf(field, "invalid action %s", quote(a))
	}
	switch {
	case errno == nil && most > 0:
		return ret | uint32(unix.EPERM), nil
	case errno == nil:
		return ret, nil
	case most == 0:
		return 0, fieldErrorf(errnoField, "%s takes no error number", a)
	case *errno > most:
		return 0, fieldErrorf(errnoField, "%d is not between 0 and %d", *errno, most)
	}
	return ret | uint32(*errno), nil
}

// filterFlags returns the flags for the kernel. Two have no effect here: TSYNC concerns other
// threads, and a process that is about to start has none; WAIT_KILLABLE_RECV concerns a
// listener, and the kernel refuses it without one.
func filterFlags(names []specs.LinuxSeccompFlag) (uint32, error) {
	if names == nil {
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil // as runc does by default
	}
	var flags uint32
	for i, name := range names {
		switch name {
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case "SECCOMP_FILTER_FLAG_TSYNC", specs.LinuxSeccompFlagWaitKillableRecv:
		default:
			return 0, fieldErrorf(fmt.Sprintf("linux.seccomp.flags[%d]", i), "invalid flag %s", quote(name))
		}
	}
	return flags, nil
}

// policy is a filter while it is being made.
type policy struct {
	fallback uint32 // returned if no rule matches
	machines []*machine
	enosys   uint32 // if not 0, returned for calls that are newer than the profile
}

// rule returns ret if all of its conditions hold.
type rule struct {
	conditions []condition
	ret        uint32
}

// add adds the rules of one entry of the profile to each machine.
func (p *policy) add(field string, call *specs.LinuxSyscall) error {
	if len(call.Names) == 0 {
		return fieldErrorf(field+".names", "must not be empty")
	}
	for i, name := range call.Names {
		if name == "" {
			return fieldErrorf(fmt.Sprintf("%s.names[%d]", field, i), "empty string is not a valid syscall")
		}
	}
	ret, err := returnValue(field+".action", call.Action, field+".errnoRet", call.ErrnoRet)
	if err != nil {
		return err
	}
	groups, err := conditions(field+".args", call.Args)
	if err != nil {
		return err
	}
	for _, m := range p.machines {
		for _, name := range call.Names {
			m.name(name)
			if ret == p.fallback {
				continue // as with runc it adds nothing and hides no later rule
			}
			for _, c := range groups {
				m.add(name, rule{c, ret})
			}
		}
	}
	return nil
}

// conditions turns args into groups, each of which becomes a rule. Normally there is one group,
// whose conditions must all hold, as the spec says. If two conditions are about the same
// argument, each condition becomes a group of its own, as in runc and Docker, whose rules for
// personality(2) were once written in that way.
func conditions(field string, args []specs.LinuxSeccompArg) ([][]condition, error) {
	var all []condition
	seen, repeated := map[uint]bool{}, false
	for i, a := range args {
		at := fmt.Sprintf("%s[%d]", field, i)
		if a.Index >= maxArgs {
			return nil, fieldErrorf(at+".index", "%d is not between 0 and %d", a.Index, maxArgs-1)
		}
		if !slices.Contains(operators, a.Op) {
			return nil, fieldErrorf(at+".op", "invalid operator %s", quote(a.Op))
		}
		repeated = repeated || seen[a.Index]
		seen[a.Index] = true
		all = append(all, condition{uint32(a.Index), a.Op, a.Value, a.ValueTwo})
	}
	if !repeated {
		return [][]condition{all}, nil
	}
	var groups [][]condition
	for _, c := range all {
		groups = append(groups, []condition{c})
	}
	return groups, nil
}

// newerCalls returns the answer for system calls newer than all of the profile's, which its
// author could not know; 0: the default action. As with runc, a call that would be refused
// returns ENOSYS, as on an old kernel: libraries try a new system call first and fall back to
// an old one.
func newerCalls(fallback specs.LinuxSeccompAction) uint32 {
	switch fallback {
	case specs.ActAllow, specs.ActLog, specs.ActTrace:
		return 0
	}
	return unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
}

// assemble encodes the program.
func assemble(code []bpf.Instruction) ([]byte, error) {
	if len(code) > maxInstructions {
		return nil, fieldErrorf("linux.seccomp.syscalls", "the filter needs %d instructions, more than the %d the kernel takes", len(code), maxInstructions)
	}
	raw, err := bpf.Assemble(code)
	if err != nil {
		return nil, fmt.Errorf("assemble system call filter: %s", strings.ReplaceAll(err.Error(), "\n", " "))
	}
	var program []byte
	for _, r := range raw {
		program = binary.LittleEndian.AppendUint16(program, r.Op)
		program = append(program, r.Jt, r.Jf)
		program = binary.LittleEndian.AppendUint32(program, r.K)
	}
	return program, nil
}
