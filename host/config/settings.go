package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// Setting documents one key of the settings file.
type Setting struct {
	Key     string // as in the file
	Default string // in TOML or in words
	Meaning string
}

// Settings documents every key once, in the order of the documentation. Tests compare
// docs/settings.md and the sample file with it.
var Settings = []Setting{
	{"accel", `"auto"`, `"kvm", "tcg" (software emulation), or auto: kvm where it can really run a guest`},
	{"qemu", "found", "absolute path of qemu-system-x86_64"},
	{"kernel", "the newest of the distribution", "bzImage, vmlinux or unified kernel image that guests boot"},
	{"modules", "those of the kernel", "the directory that holds the kernel's modules.dep"},
	{"kernel_params", `""`, "added to the guest's kernel command line"},
	{"memory_mib", fmt.Sprintf("the host's RAM, at most %d", MaxDefaultMemoryMiB), "guest RAM for a container without a memory limit; the host gives what is touched"},
	{"vcpus", fmt.Sprintf("the host's, at most %d; emulated 1", MaxDefaultVCPUs), "guest CPUs for a container without a CPU limit"},
	{"nics", strconv.Itoa(DefaultNICs), "network cards held ready for interfaces that appear after create: a container has at most so many networks, unless more are there at create"},
	{"anti_spoofing", `"auto"`, `what a guest sends has its own sender: its MAC, and without CAP_NET_RAW its addresses; with CAP_NET_ADMIN anything. "off": anything`},
	{"uncarried_filters", `"refuse"`, `a container does not start where its network namespace has a packet filter that a guest can't have, such as iptables-legacy's; "accept": it starts without`},
	{"unsafe_annotations", "false", "annotations of a container may turn the two above off, and KVM"},
	{"isolation", `"vm"`, `"annotation": a container whose annotation org.huskvm.isolation is runc is handed to the host's runc, and is no virtual machine`},
	{"runc", "runc, else crun", "absolute path of the OCI runtime for such containers"},
	{"boot_timeout", fmt.Sprintf("%q, emulated \"%.0fs\"", BootTimeoutKVM.String(), BootTimeoutTCG.Seconds()), "from power-on to the agent's answer"},
	{"vsock", `"auto"`, `agent channel over vhost-vsock: "on", "off", or where the host has it`},
	{"templates", `"auto"`, `start from memory templates; "off": always boot`},
	{"template_scope", `"host"`, `who may share a template, and with it what its kernel drew at boot: all containers; "annotation:KEY": those whose annotation KEY has the same value, others boot; "container": nobody`},
	{"templates_max_age", `"168h"`, "when a template goes that nothing starts from"},
	{"templates_max_mib", "4096", "how much of the disk all templates together may take"},
	{"free_page_reporting", "true", "guests return memory that they have freed to the host, some seconds later"},
	{"failures", `"/var/log/husk"`, "why virtual machines ended under their containers, for `husk failures`"},
	{"cache", `"/var/cache/husk"`, "memory templates, unpacked kernels, initramfs images"},
}

// Effective is a setting with its value on this host.
type Effective struct {
	Setting
	Value string // in TOML; empty: the default, which is found or computed when a container starts
	From  string // the file's path, or "default"
}

// Show returns all settings as Load would apply them. path is as for Load.
func Show(path string) ([]Effective, error) {
	c, err := Load(path)
	if err != nil {
		return nil, err
	}
	if path == "" {
		path = DefaultPath
	}
	meta, err := toml.DecodeFile(path, &Config{})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read settings %s: %w", path, err)
	}
	values := valuesOf(c)
	all := make([]Effective, 0, len(Settings))
	for _, s := range Settings {
		e := Effective{Setting: s, From: "default"}
		v := values[s.Key]
		switch {
		case meta.IsDefined(s.Key):
			e.From, e.Value = path, text(v)
		case !v.IsZero():
			e.Value = text(v)
		}
		all = append(all, e)
	}
	return all, nil
}

// valuesOf returns the fields of a Config by their keys.
func valuesOf(c *Config) map[string]reflect.Value {
	values := map[string]reflect.Value{}
	v := reflect.ValueOf(c).Elem()
	for i := range v.NumField() {
		values[v.Type().Field(i).Tag.Get("toml")] = v.Field(i)
	}
	return values
}

// text returns a value in TOML.
func text(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case Duration:
		return fmt.Sprintf("%q", time.Duration(x).String())
	case string:
		return fmt.Sprintf("%q", x)
	default:
		return fmt.Sprint(x)
	}
}

// WriteSample writes a settings file in which every setting is explained and commented out.
func WriteSample(w io.Writer) error {
	var b strings.Builder
	b.WriteString("# Settings of husk, all optional. This file belongs to " + DefaultPath + ".\n")
	for _, s := range Settings {
		fmt.Fprintf(&b, "\n# %s: %s.\n# Default: %s.\n#%s = %s\n", s.Key, s.Meaning, s.Default, s.Key, sampleValue(s))
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write sample settings: %w", err)
	}
	return nil
}

// sampleValues are for settings whose default cannot be written in the file.
var sampleValues = map[string]string{
	"qemu":         `"/usr/bin/qemu-system-x86_64"`,
	"kernel":       `"/boot/vmlinuz-6.1.0-48-amd64"`,
	"modules":      `"/lib/modules/6.1.0-48-amd64"`,
	"memory_mib":   "2048",
	"vcpus":        "2",
	"boot_timeout": `"20s"`,
	"runc":         `"/usr/sbin/runc"`,
}

func sampleValue(s Setting) string {
	if v, ok := sampleValues[s.Key]; ok {
		return v
	}
	return s.Default
}
