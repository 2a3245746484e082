// Package config reads the host-wide settings file: what an administrator can change for all
// containers of this machine. husk works without the file.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// DefaultPath is read if --config is not given. It need not exist.
const DefaultPath = "/etc/husk/config.toml"

// Values of TemplateScope.
const (
	ScopeHost       = "host"
	ScopeContainer  = "container"
	ScopeAnnotation = "annotation:" // followed by the annotation's name
)

// Values of Isolation.
const (
	IsolationVM         = "vm"
	IsolationAnnotation = "annotation"
)

// Config is the content of the settings file. The zero value of a field means its default.
type Config struct {
	// Accel is "auto", "kvm" or "tcg". Default "auto": KVM if it can really run a guest, else
	// software emulation.
	Accel string `toml:"accel"`
	// QEMU is the absolute path of the vmm's executable. Default: qemu-system-x86_64 in
	// /usr/local/bin, /usr/bin, /usr/libexec.
	QEMU string `toml:"qemu"`
	// Kernel is the absolute path of a bzImage or an ELF vmlinux. Default: husk's own kernel if
	// it is installed (/usr/lib/husk/vmlinuz), else the newest /boot/vmlinuz-* that has modules
	// in /lib/modules.
	Kernel string `toml:"kernel"`
	// Modules is the absolute path of the directory with Kernel's modules and their
	// modules.dep. Default: /lib/modules/RELEASE.
	Modules string `toml:"modules"`
	// KernelParams are appended to the guest's kernel command line.
	KernelParams string `toml:"kernel_params"`
	// MemoryMiB is the size of the guest's RAM for a container without a memory limit, 128 to
	// 1048576 MiB. Default: the host's RAM, at most 16384. It is an upper bound: the host
	// provides only what the guest uses.
	MemoryMiB int `toml:"memory_mib"`
	// VCPUs is the number of the guest's CPUs for a container without a CPU limit, 1 to 255.
	// Default: the number of the host's CPUs, at most 4; under emulation 1, because emulated
	// CPUs that wait for each other lose more than they gain.
	VCPUs int `toml:"vcpus"`
	// NICs is the number of network cards that a VM has for interfaces found in its network
	// namespace at start, 1 to 8. Default 4, so that an engine can connect three more networks
	// later. Each card makes an emulated start about 2 % slower. Interfaces that exist at
	// create always get a card.
	NICs int `toml:"nics"`
	// AntiSpoofing is "auto" or "off": whether frames from the guest must have the container's
	// own addresses as sender, as far as its capabilities would restrict a process on the host.
	// Default "auto": they must.
	AntiSpoofing string `toml:"anti_spoofing"`
	// UncarriedFilters is "refuse" or "accept": what to do about a packet filter in the
	// container's network namespace that the guest cannot have, and that would have no effect.
	// Default "refuse": the container does not start.
	UncarriedFilters string `toml:"uncarried_filters"`
	// UnsafeAnnotations allows a container's annotations to turn off the two settings above.
	// Default false, because whoever may start containers may set annotations.
	UnsafeAnnotations bool `toml:"unsafe_annotations"`
	// Isolation is "vm": each container is a virtual machine; or "annotation": a container
	// whose annotation org.huskvm.isolation is "runc" is handed over to Runc, without any of
	// husk's isolation. Default "vm".
	Isolation string `toml:"isolation"`
	// Runc is the absolute path of the OCI runtime for such containers. Default: runc in PATH,
	// else crun.
	Runc string `toml:"runc"`
	// BootTimeout bounds the time from the guest's start to the agent's answer. Default 20 s
	// with KVM, 120 s under emulation.
	BootTimeout Duration `toml:"boot_timeout"`
	// Vsock is "auto", "on" or "off": whether the agent channel uses vhost-vsock. Default
	// "auto": if /dev/vhost-vsock exists.
	Vsock string `toml:"vsock"`
	// Templates is "auto" or "off": whether VMs wake up from a memory template, which the first
	// VM of a kind makes, instead of booting. Default "auto": they do.
	Templates string `toml:"templates"`
	// TemplateScope says which containers may start from one template, and so share what its
	// kernel has drawn at boot. "host": all. "annotation:KEY": those whose annotation KEY has
	// the same value; a container without it boots. "container": none, each boots. Default
	// "host". A container's own annotation can narrow it.
	TemplateScope string `toml:"template_scope"`
	// TemplatesMaxAge is how long a template is kept from which nothing starts. Default 168h, a
	// week.
	TemplatesMaxAge Duration `toml:"templates_max_age"`
	// TemplatesMaxMiB bounds the disk space of all templates together, 256 to 1048576 MiB.
	// Those unused for longest are removed first. Default 4096. One template takes 100 to 450
	// MiB, depending on the guest's RAM.
	TemplatesMaxMiB int `toml:"templates_max_mib"`
	// FreePageReporting makes guests give memory that they have freed back to the host, some
	// seconds later. Default true.
	FreePageReporting bool `toml:"free_page_reporting"`
	// Cache is the directory of memory templates, unpacked kernels and initramfs images.
	// Default /var/cache/husk.
	Cache string `toml:"cache"`
	// Failures is the directory in which supervisors note why a virtual machine has ended under
	// its container. Default /var/log/husk.
	Failures string `toml:"failures"`
}

// Duration is a time.Duration that is written as "20s" or "2m".
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return err
	}
	if v <= 0 {
		return fmt.Errorf("duration %q is not positive", b)
	}
	*d = Duration(v)
	return nil
}

// Load reads the settings file at path. If path is empty, it reads DefaultPath if that exists.
// An unknown key is an error, because a misspelt setting would have no effect.
func Load(path string) (*Config, error) {
	optional := path == ""
	if optional {
		path = DefaultPath
	}
	text, err := os.ReadFile(path)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return parse("")
	}
	var c *Config
	if err == nil {
		c, err = parse(string(text))
	}
	if err != nil {
		return nil, fmt.Errorf("read settings %s: %w", path, err)
	}
	return c, nil
}

func parse(text string) (*Config, error) {
	c := &Config{FreePageReporting: true}
	meta, err := toml.Decode(text, c)
	if err != nil {
		return nil, err
	}
	if keys := meta.Undecoded(); len(keys) > 0 {
		return nil, fmt.Errorf("unknown key %q", keys[0].String())
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	return c.withDefaults(), nil
}

func (c *Config) withDefaults() *Config {
	if c.Accel == "" {
		c.Accel = "auto"
	}
	if c.Vsock == "" {
		c.Vsock = "auto"
	}
	if c.Templates == "" {
		c.Templates = "auto"
	}
	if c.AntiSpoofing == "" {
		c.AntiSpoofing = "auto"
	}
	if c.UncarriedFilters == "" {
		c.UncarriedFilters = "refuse"
	}
	if c.Isolation == "" {
		c.Isolation = IsolationVM
	}
	if c.TemplateScope == "" {
		c.TemplateScope = ScopeHost
	}
	if c.TemplatesMaxAge == 0 {
		c.TemplatesMaxAge = Duration(7 * 24 * time.Hour)
	}
	if c.TemplatesMaxMiB == 0 {
		c.TemplatesMaxMiB = 4096
	}
	if c.Cache == "" {
		c.Cache = "/var/cache/husk"
	}
	if c.Failures == "" {
		c.Failures = "/var/log/husk"
	}
	return c
}

func (c *Config) validate() error {
	if !oneOf(c.Accel, "", "auto", "kvm", "tcg") {
		return fmt.Errorf("accel: %q is none of auto, kvm, tcg", c.Accel)
	}
	if !oneOf(c.Vsock, "", "auto", "on", "off") {
		return fmt.Errorf("vsock: %q is none of auto, on, off", c.Vsock)
	}
	if !oneOf(c.Templates, "", "auto", "off") {
		return fmt.Errorf("templates: %q is none of auto, off", c.Templates)
	}
	if !oneOf(c.AntiSpoofing, "", "auto", "off") {
		return fmt.Errorf("anti_spoofing: %q is none of auto, off", c.AntiSpoofing)
	}
	if !oneOf(c.UncarriedFilters, "", "refuse", "accept") {
		return fmt.Errorf("uncarried_filters: %q is none of refuse, accept", c.UncarriedFilters)
	}
	if !oneOf(c.Isolation, "", IsolationVM, IsolationAnnotation) {
		return fmt.Errorf("isolation: %q is none of vm, annotation", c.Isolation)
	}
	if name, ok := strings.CutPrefix(c.TemplateScope, ScopeAnnotation); (!ok || name == "") && !oneOf(c.TemplateScope, "", ScopeHost, ScopeContainer) {
		return fmt.Errorf("template_scope: %q is none of host, container, annotation:KEY", c.TemplateScope)
	}
	for _, p := range []struct{ key, value string }{
		{"qemu", c.QEMU}, {"kernel", c.Kernel}, {"modules", c.Modules}, {"cache", c.Cache}, {"failures", c.Failures}, {"runc", c.Runc},
	} {
		if p.value != "" && !filepath.IsAbs(p.value) {
			return fmt.Errorf("%s: %q is not an absolute path", p.key, p.value)
		}
	}
	for _, n := range []struct {
		key             string
		value, min, max int
	}{
		{"memory_mib", c.MemoryMiB, MinMemoryMiB, MaxMemoryMiB},
		{"vcpus", c.VCPUs, 1, MaxVCPUs},
		{"nics", c.NICs, 1, MaxNICs},
		{"templates_max_mib", c.TemplatesMaxMiB, 256, 1 << 20},
	} {
		if n.value != 0 && (n.value < n.min || n.value > n.max) {
			return fmt.Errorf("%s: %d is not between %d and %d", n.key, n.value, n.min, n.max)
		}
	}
	return nil
}

func oneOf(s string, set ...string) bool {
	for _, v := range set {
		if s == v {
			return true
		}
	}
	return false
}
