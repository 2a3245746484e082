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

// Kind is everything that decides what a saved guest contains and where it can wake up. VMs of
// equal kinds may share a template.
type Kind struct {
	Husk      string `json:"husk"`      // identity of husk's executable
	Machine   string `json:"machine"`   // digest of the vmm's arguments, without those that may differ between VMs of a kind
	Host      string `json:"host"`      // release of the host's kernel, because KVM is part of the machine
	Guest     string `json:"guest"`     // digest of kernel, modules and agent
	VMM       string `json:"vmm"`       // identity of the vmm's executable
	Accel     string `json:"accel"`     //
	CPU       string `json:"cpu"`       // the host's model, flags and microcode
	MemoryMiB int    `json:"memoryMiB"` // size of the guest's RAM
	VCPUs     int    `json:"vcpus"`
	NICs      int    `json:"nics"`
	Cmdline   string `json:"cmdline"` // kernel parameters in addition to the hypervisor's own

	// Tenant and Part are those of the Scope. Only containers with the same values share what
	// the guest has drawn at boot.
	Tenant string `json:"tenant,omitempty"`
	Part   string `json:"part,omitempty"`
}

// Fits says whether templates of the kind other can be used on this host as it is now, which k
// describes: husk, guest, vmm, processor and host kernel are the same. Sizes and tenants are
// not compared.
func (k Kind) Fits(other Kind) bool {
	return k.Husk == other.Husk && k.Host == other.Host && k.Guest == other.Guest && k.VMM == other.VMM &&
		k.CPU == other.CPU && k.Accel == other.Accel && k.Cmdline == other.Cmdline
}

// Key returns the name of a kind's template: a hash that is a valid file name.
func (k Kind) Key() string {
	b, err := json.Marshal(k)
	if err != nil {
		// A struct of strings and numbers can always be marshalled.
		panic(err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// FileIdentity returns a text that identifies a file's present content, without reading the
// file.
func FileIdentity(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return fmt.Sprintf("%s:%d:%d:%d:%d.%d:%d.%d", path, st.Dev, st.Ino, st.Size,
		st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec), nil
}

// cpuFields are the lines of /proc/cpuinfo on which the guest's CPU depends.
var cpuFields = []string{"vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags"}

// HostCPU returns the identity of the host's processor.
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
