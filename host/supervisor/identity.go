package supervisor

import (
	"os"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/specconv"
)

// takeIdentity gives this process what tools of the host see of a container besides its mounts:
// host name, domain name and OOM score. Errors are ignored, because the guest has its own
// values.
func takeIdentity(s specconv.Shadow) {
	for _, ns := range s.Namespaces {
		if ns.Type != specs.UTSNamespace || ns.Path != "" {
			continue
		}
		if s.Hostname != "" {
			_ = unix.Sethostname([]byte(s.Hostname))
		}
		if s.Domainname != "" {
			_ = unix.Setdomainname([]byte(s.Domainname))
		}
	}
	if s.OOMScoreAdj != nil {
		_ = os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(*s.OOMScoreAdj)), 0)
	}
}
