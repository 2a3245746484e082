// Package check finds out whether this host can run husk's containers, and how. Each check says
// what it has found and, if that is not good, what to do.
package check

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/huskvm/husk/host/bootimage"
	"github.com/huskvm/husk/host/config"
	"github.com/huskvm/husk/host/install"
	"github.com/huskvm/husk/hypervisor"
)

// Status is the result of a check.
type Status string

// OK is also the result for something that is missing and not needed. Warn: it works less well
// than it could. Fail: containers cannot run.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
)

// Check is one line of the report.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	Detail string `json:"detail"`           // what was found
	Advice string `json:"advice,omitempty"` // what to do about it
}

func (c Check) warn(detail, advice string) Check {
	c.Status, c.Detail, c.Advice = Warn, detail, advice
	return c
}

func (c Check) fail(detail, advice string) Check {
	c.Status, c.Detail, c.Advice = Fail, detail, advice
	return c
}

// Report is the result of all checks. Scripts read its JSON, so fields are only ever added.
type Report struct {
	OK     bool             `json:"ok"` // no check has failed
	Accel  hypervisor.Accel `json:"accel,omitempty"`
	QEMU   string           `json:"qemu,omitempty"`   // path of the executable
	Kernel string           `json:"kernel,omitempty"` // release of the guest's kernel
	Checks []Check          `json:"checks"`
}

// Options say what to check.
type Options struct {
	ConfigPath string // settings file; empty: config.DefaultPath if it exists
	StateRoot  string // value of --root
	Trial      *Trial // a container to run if no check fails; nil: none
}

// Run does all checks, and stops after one without which the others mean nothing. It changes
// nothing on the host, unless it runs a container.
func Run(ctx context.Context, o Options) *Report {
	r := &Report{}
	add := func(c Check) { r.Checks = append(r.Checks, c) }
	var c Check

	add(root())
	if r.failed() > 0 {
		return r // without rights all other checks would fail
	}
	settings, c := loadSettings(o.ConfigPath)
	add(c)
	r.Accel, c = accel(hypervisor.Accel(settings.Accel))
	add(c)
	r.QEMU, c = qemuBinary(ctx, settings.QEMU)
	add(c)
	r.Kernel, c = kernel(bootimage.Settings{Kernel: settings.Kernel, Modules: settings.Modules, CacheDir: settings.Cache})
	add(c)
	add(embeddedAgent())
	add(channel(settings.Vsock))
	add(cgroups(cgroupRoot, magic))
	add(tun(tunDevice))
	add(hostKernel())
	add(virtiofsd(virtiofsdPaths))
	add(directory("cache", settings.Cache, cacheMiB, true))
	add(directory("state", o.StateRoot, stateMiB, false))
	add(engines(install.Engines, programDirs))
	r.OK = r.failed() == 0
	if r.OK && o.Trial != nil {
		add(o.Trial.Run(ctx))
		r.OK = r.failed() == 0
	}
	return r
}

func (r *Report) failed() int {
	n := 0
	for _, c := range r.Checks {
		if c.Status == Fail {
			n++
		}
	}
	return n
}

// Print writes the report for users.
func (r *Report) Print(w io.Writer) error {
	const padding = 2
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 1, padding, ' ', 0)
	for _, c := range r.Checks {
		fmt.Fprintf(t, "%s\t%s\t%s\n", c.Status, c.Name, oneLine(c.Detail))
		if c.Advice != "" {
			fmt.Fprintf(t, "\t\t-> %s\n", oneLine(c.Advice))
		}
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print report: %w", err)
	}
	switch n := r.failed(); n {
	case 0:
		fmt.Fprintf(&b, "\nhusk can run containers here, with %s.\n", r.Accel)
	case 1:
		b.WriteString("\nhusk cannot run containers here: 1 check failed.\n")
	default:
		fmt.Fprintf(&b, "\nhusk cannot run containers here: %d checks failed.\n", n)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("print report: %w", err)
	}
	return nil
}

// oneLine replaces newlines and tabs in an error's text, so that the columns stay.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func loadSettings(path string) (*config.Config, Check) {
	c := Check{Name: "settings", Status: OK, Detail: "defaults, there is no " + config.DefaultPath}
	settings, err := config.Load(path)
	if err != nil {
		// /dev/null gives the default settings, with which the other checks go on.
		if settings, _ = config.Load(os.DevNull); settings == nil {
			settings = &config.Config{}
		}
		return settings, c.fail(err.Error(), "correct the file; the other checks are of the default settings")
	}
	switch {
	case path != "":
		c.Detail = path
	default:
		if _, err := os.Stat(config.DefaultPath); err == nil {
			c.Detail = config.DefaultPath
		}
	}
	return settings, c
}
