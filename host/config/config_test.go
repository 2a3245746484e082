package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoadAll(t *testing.T) {
	got, err := Load(write(t, `
# every setting
accel = "tcg"
qemu = "/opt/qemu"
kernel = "/boot/vmlinuz"
modules = "/lib/modules/6.1"
kernel_params = "quiet debug"
memory_mib = 512
vcpus = 2
nics = 3
boot_timeout = "1m30s"
vsock = "off"
templates = "off"
template_scope = "annotation:example.org/tenant"
templates_max_age = "1h"
templates_max_mib = 512
free_page_reporting = true
anti_spoofing = "off"
uncarried_filters = "accept"
unsafe_annotations = true
isolation = "annotation"
runc = "/opt/runc"
cache = "/tmp/cache"
failures = "/tmp/failures"
`))
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Accel: "tcg", QEMU: "/opt/qemu", Kernel: "/boot/vmlinuz", Modules: "/lib/modules/6.1",
		KernelParams: "quiet debug", MemoryMiB: 512, VCPUs: 2, NICs: 3,
		BootTimeout: Duration(90 * time.Second), Vsock: "off", Templates: "off", TemplateScope: "annotation:example.org/tenant", Cache: "/tmp/cache",
		TemplatesMaxAge: Duration(time.Hour), TemplatesMaxMiB: 512, FreePageReporting: true, Failures: "/tmp/failures",
		AntiSpoofing: "off", UncarriedFilters: "accept", UnsafeAnnotations: true, Isolation: "annotation", Runc: "/opt/runc",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	// If you add a setting to Config, add it to this test.
	v := reflect.ValueOf(*got)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("setting %s is not tested", v.Type().Field(i).Tag.Get("toml"))
		}
	}
}

func TestLoadDefaults(t *testing.T) {
	want := &Config{
		Accel: "auto", Vsock: "auto", Templates: "auto", TemplateScope: ScopeHost, Cache: "/var/cache/husk", Failures: "/var/log/husk",
		TemplatesMaxAge: Duration(7 * 24 * time.Hour), TemplatesMaxMiB: 4096,
		AntiSpoofing: "auto", UncarriedFilters: "refuse", Isolation: "vm", FreePageReporting: true,
	}
	for _, content := range []string{"", "# nothing\n", "memory_mib = 0\naccel = \"\"\n"} {
		got, err := Load(write(t, content))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v, %v", content, got, err)
		}
	}
}

// TestLoadNoFile: the file need not exist without --config, and must exist with it.
func TestLoadNoFile(t *testing.T) {
	if _, err := os.Stat(DefaultPath); err == nil {
		t.Logf("%s exists on this machine: only the named file is tested", DefaultPath)
	} else if c, err := Load(""); err != nil || c.Accel != "auto" {
		t.Errorf("no file: got %+v, %v", c, err)
	}
	path := filepath.Join(t.TempDir(), "none.toml")
	if _, err := Load(path); err == nil || err.Error() != "read settings "+path+": open "+path+": no such file or directory" {
		t.Errorf("named file is missing: got %v", err)
	}
}

func TestLoadRefuses(t *testing.T) {
	for content, want := range map[string]string{
		`accel = "xen"`:                     `accel: "xen" is none of auto, kvm, tcg`,
		`anti_spoofing = "no"`:              `anti_spoofing: "no" is none of auto, off`,
		`uncarried_filters = "drop"`:        `uncarried_filters: "drop" is none of refuse, accept`,
		`vsock = "yes"`:                     `vsock: "yes" is none of auto, on, off`,
		`template_scope = "tenant"`:         `template_scope: "tenant" is none of host, container, annotation:KEY`,
		`template_scope = "annotation:"`:    `template_scope: "annotation:" is none of host, container, annotation:KEY`,
		`qemu = "qemu"`:                     `qemu: "qemu" is not an absolute path`,
		`kernel = "boot/vmlinuz"`:           `kernel: "boot/vmlinuz" is not an absolute path`,
		`modules = "./x"`:                   `modules: "./x" is not an absolute path`,
		`cache = "~/x"`:                     `cache: "~/x" is not an absolute path`,
		`memory_mib = 127`:                  `memory_mib: 127 is not between 128 and 1048576`,
		`memory_mib = 1048577`:              `memory_mib: 1048577 is not between 128 and 1048576`,
		`memory_mib = -1`:                   `memory_mib: -1 is not between 128 and 1048576`,
		`vcpus = 256`:                       `vcpus: 256 is not between 1 and 255`,
		`nics = 9`:                          `nics: 9 is not between 1 and 8`,
		`memory_mb = 512`:                   `unknown key "memory_mb"`,
		"[vm]\nmemory_mib = 512":            `unknown key "vm"`,
		`boot_timeout = "0s"`:               `duration "0s" is not positive`,
		`boot_timeout = "-5s"`:              `duration "-5s" is not positive`,
		`boot_timeout = "20"`:               `missing unit in duration`,
		`boot_timeout = 20`:                 `missing unit in duration`,
		`vcpus = "2"`:                       `incompatible types`,
		`accel = `:                          `expected value`,
		"nics = 1\nnics = 2":                `already`,
		`memory_mib = 99999999999999999999`: `out of range`,
	} {
		path := write(t, content)
		_, err := Load(path)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "read settings "+path+": ") {
			t.Errorf("%s:\n got %v\nwant %s", content, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than one line: %v", content, err)
		}
	}
}

// FuzzParse: arbitrary bytes are either settings within their limits or an error.
func FuzzParse(f *testing.F) {
	f.Add("accel = \"tcg\"\nmemory_mib = 512\nboot_timeout = \"20s\"\n")
	f.Add("templates = \"off\"\n[x]\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parse(text)
		if (c == nil) == (err == nil) {
			t.Fatalf("%v and %v", c, err)
		}
		if err != nil {
			return
		}
		if err := c.validate(); err != nil {
			t.Error(err)
		}
		if c.Cache == "" || c.TemplatesMaxAge <= 0 || c.BootTimeout < 0 {
			t.Errorf("%+v", c)
		}
	})
}

// A setting whose default is true can be turned off.
func TestLoadFreePageReportingOff(t *testing.T) {
	c, err := Load(write(t, "free_page_reporting = false\n"))
	if err != nil || c.FreePageReporting {
		t.Errorf("got %+v, %v", c, err)
	}
}
