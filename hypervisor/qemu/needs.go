package qemu

import (
	"os"
	"strings"

	"github.com/huskvm/husk/hypervisor"
)

// yamaScope is the file in which Yama says which processes may trace others.
const yamaScope = "/proc/sys/kernel/yama/ptrace_scope"

// noteNeeds sets v.needs. To answer calls about special files this process has to read the
// vmm's memory. The kernel allows that only to a process that has at least the vmm's
// capabilities; with a yama scope of 2 or more, or if the vmm is another user, CAP_SYS_PTRACE
// is needed as well. And it needs the rights to do what the vmm asks for.
func (v *vm) noteNeeds(cfg hypervisor.Config) {
	if cfg.User != nil {
		v.needs.Capabilities = append(v.needs.Capabilities, "CAP_KILL") // to kill the vmm
	}
	if v.watch.special == nil || v.watch.special.fixed.Load() {
		return
	}
	for _, c := range keptCapabilities(cfg) {
		v.needs.Capabilities = append(v.needs.Capabilities, "CAP_"+strings.ToUpper(c.String()))
	}
	scope, err := os.ReadFile(yamaScope)
	if cfg.User != nil || err == nil && strings.TrimSpace(string(scope)) >= "2" {
		v.needs.Capabilities = append(v.needs.Capabilities, "CAP_SYS_PTRACE")
	}
	v.needs.Calls = []string{"pidfd_getfd", "process_vm_readv"}
}
