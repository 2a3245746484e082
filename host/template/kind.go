package template

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Kind is everything that decides what a saved guest looks like and where it can
// wake up. Two VMs of equal kinds may share a template; any difference is
// another template.
type Kind struct {
	Husk      string `json:"husk"`      // identity of husk's binary
	Machine   string `json:"machine"`   // digest of the vmm's arguments, those of one VM left out
	Host      string `json:"host"`      // release of the host's kernel: KVM is part of the machine
	Guest     string `json:"guest"`     // digest of kernel, modules and agent
	VMM       string `json:"vmm"`       // identity of the vmm's binary
	Accel     string `json:"accel"`     //
	CPU       string `json:"cpu"`       // of the host: model, flags, microcode
	MemoryMiB int    `json:"memoryMiB"` // guest RAM
	VCPUs     int    `json:"vcpus"`
	NICs      int    `json:"nics"`
	Cmdline   string `json:"cmdline"` // kernel parameters beyond the hypervisor's own

	// Tenant and Part are those of the Scope: what the guest has drawn is theirs alone.
	Tenant string `json:"tenant,omitempty"`
	Part   string `json:"part,omitempty"`
}

// Fits says whether what is here now, of which k is any kind, could start from templates of
// the kind other: the same husk, guest, vmm, processor and kernel of the host. Sizes and
// tenants do not count.
func (k Kind) Fits(other Kind) bool {
	return k.Husk == other.Husk && k.Host == other.Host && k.Guest == other.Guest && k.VMM == other.VMM &&
		k.CPU == other.CPU && k.Accel == other.Accel && k.Cmdline == other.Cmdline
}

// Key names a kind's template: a hash, fit for a file name.
func (k Kind) Key() string {
	b, err := json.Marshal(k)
	if err != nil {
		// A struct of strings and numbers cannot fail to be marshalled.
		panic(err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// FileIdentity tells a file from any other, and from itself after a change,
// without reading it.
func FileIdentity(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return fmt.Sprintf("%s:%d:%d:%d:%d.%d:%d.%d", path, st.Dev, st.Ino, st.Size,
		st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec), nil
}

// cpuFields are the lines of /proc/cpuinfo a guest's view of its CPU follows from.
var cpuFields = []string{"vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags"}

// HostCPU is the identity of the host's processor.
func HostCPU() (string, error) {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", fmt.Errorf("read host cpu: %w", err)
	}
	return cpuIdentity(string(b))
}

func cpuIdentity(cpuinfo string) (string, error) {
	first, _, _ := strings.Cut(cpuinfo, "\n\n")
	hash := sha256.New()
	found := 0
	for line := range strings.Lines(first) {
		name, value, ok := strings.Cut(line, ":")
		name = strings.TrimSpace(name)
		for _, f := range cpuFields {
			if ok && name == f {
				fmt.Fprintf(hash, "%s=%s\n", name, strings.TrimSpace(value))
				found++
			}
		}
	}
	if found == 0 {
		return "", errors.New("read host cpu: /proc/cpuinfo has none of the fields expected")
	}
	return hex.EncodeToString(hash.Sum(nil)[:16]), nil
}
