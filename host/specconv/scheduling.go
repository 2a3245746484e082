package specconv

import specs "github.com/opencontainers/runtime-spec/specs-go"

var schedulerPolicies = map[specs.LinuxSchedulerPolicy]bool{
	specs.SchedOther: true, specs.SchedFIFO: true, specs.SchedRR: true,
	specs.SchedBatch: true, specs.SchedIdle: true, specs.SchedDeadline: true,
}

var schedulerFlags = map[specs.LinuxSchedulerFlag]bool{
	specs.SchedFlagResetOnFork: true, specs.SchedFlagReclaim: true, specs.SchedFlagDLOverrun: true,
	specs.SchedFlagKeepPolicy: true, specs.SchedFlagKeepParams: true,
	specs.SchedFlagUtilClampMin: true, specs.SchedFlagUtilClampMax: true,
}

var ioPriorityClasses = map[specs.IOPriorityClass]bool{
	specs.IOPRIO_CLASS_RT: true, specs.IOPRIO_CLASS_BE: true, specs.IOPRIO_CLASS_IDLE: true,
}

// validateAffinity checks the lists of CPUs. Only the guest's kernel knows which CPUs exist.
func validateAffinity(p *specs.Process) error {
	if p.ExecCPUAffinity == nil {
		return nil
	}
	for _, list := range []struct{ field, cpus string }{{"initial", p.ExecCPUAffinity.Initial}, {"final", p.ExecCPUAffinity.Final}} {
		if _, err := countNumbers(list.cpus, maxAffinityCPU); err != nil {
			return fieldErrorf("process.execCPUAffinity."+list.field, "invalid CPU affinity %s: not a list such as 0-2,7 of numbers up to %d", quote(list.cpus), maxAffinityCPU)
		}
	}
	return nil
}

// maxAffinityCPU is the highest CPU number for sched_setaffinity(2).
const maxAffinityCPU = 1023

// validateScheduler checks names, and ranges that do not depend on the policy. The guest's
// kernel checks the rest.
func validateScheduler(p *specs.Process) error {
	s := p.Scheduler
	switch {
	case s == nil:
		return nil
	case !schedulerPolicies[s.Policy]:
		return fieldErrorf("process.scheduler.policy", "invalid scheduler policy: %s", quote(s.Policy))
	case s.Nice < -20 || s.Nice > 19:
		return fieldErrorf("process.scheduler.nice", "%d is not between -20 and 19", s.Nice)
	case s.Priority < 0 || s.Priority > 99:
		return fieldErrorf("process.scheduler.priority", "%d is not between 0 and 99", s.Priority)
	}
	for i, f := range s.Flags {
		if !schedulerFlags[f] {
			return fieldErrorf(index("process.scheduler.flags", i), "invalid scheduler flag: %s", quote(f))
		}
	}
	return nil
}

func validateIOPriority(p *specs.Process) error {
	switch io := p.IOPriority; {
	case io == nil:
	case !ioPriorityClasses[io.Class]:
		return fieldErrorf("process.ioPriority.class", "invalid ioPriority.Class: %s", quote(io.Class))
	case io.Priority < 0 || io.Priority > 7:
		return fieldErrorf("process.ioPriority.priority", "invalid ioPriority.Priority: %d", io.Priority)
	}
	return nil
}

// validatePersonality checks the personality. The spec defines two domains and no flag.
func validatePersonality(p *specs.LinuxPersonality) error {
	switch {
	case p == nil:
	case p.Domain != specs.PerLinux && p.Domain != specs.PerLinux32:
		return fieldErrorf("linux.personality.domain", "invalid personality domain: %s", quote(p.Domain))
	case len(p.Flags) > 0:
		return fieldErrorf("linux.personality.flags", "invalid personality flag: %s", quote(p.Flags[0]))
	}
	return nil
}
