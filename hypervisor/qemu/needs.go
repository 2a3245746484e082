package qemu

import (
	"os"
	"strings"

	"github.com/huskvm/husk/hypervisor"
)

// yamaScope is where the kernel says who may look into whom.
const yamaScope = "/proc/sys/kernel/yama/ptrace_scope"

// noteNeeds: the answers for special files take looking into the vmm, which the kernel
// lets only those do who have at least the vmm's capabilities, and the rights to what
// is asked for. Of a scope of 2 on, and of another user, it takes one more.
func (v *vm) noteNeeds(cfg hypervisor.Config) {
	if cfg.User != nil {
		v.needs.Capabilities = append(v.needs.Capabilities, "CAP_KILL") // the vmm
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
