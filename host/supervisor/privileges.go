package supervisor

import (
	"fmt"

	"github.com/huskvm/husk/host/supervisor/privileges"
)

// dropPrivileges leaves this process only the rights that it needs while a created container
// lives. After it the process mounts nothing, joins no namespace and opens nothing of the host:
// everything that it is told comes from the guest and from verbs.
func (c *creation) dropPrivileges() error {
	needs := c.s.machine.Needs()
	speaks, changes := c.s.network.Needs()
	kept := privileges.Kept{
		Capabilities: needs.Capabilities, Calls: needs.Calls,
		Network:  speaks,
		Programs: c.hostOOM.runsPrograms(),
	}
	if changes {
		// Interfaces may be added and removed as long as the container lives.
		kept.Capabilities = append(kept.Capabilities, "CAP_NET_ADMIN")
	}
	if err := privileges.Drop(kept); err != nil {
		return fmt.Errorf("drop privileges: %w", err)
	}
	c.timings.Lap("drop privileges")
	return nil
}
