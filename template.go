package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/config"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/supervisor"
	"github.com/huskvm/husk/host/template"
	"github.com/huskvm/husk/host/timings"
	"github.com/huskvm/husk/hypervisor/qemu"
)

var templateCommand = &cli.Command{
	Name:         "template",
	Usage:        "look after the memory templates that containers start from",
	OnUsageError: usageError,
	// Reached without a subcommand, or with one that does not exist.
	Action: func(c *cli.Context) error {
		if c.NArg() > 0 {
			return fmt.Errorf("template: %w", unknownCommand(c.Command.Subcommands, c.Args().First()))
		}
		return cli.ShowSubcommandHelp(c)
	},
	HideHelpCommand: true,
	Subcommands: []*cli.Command{
		{
			Name:         "list",
			Usage:        "list templates",
			OnUsageError: usageError,
			Flags:        []cli.Flag{formatFlag()},
			Action:       listTemplates,
		},
		{
			Name:         "create",
			OnUsageError: usageError,
			Usage:        "make the template of one kind of container before the first one needs it",
			Flags: []cli.Flag{
				&cli.IntFlag{Name: "memory", Usage: "RAM of the guest in `MIB` (default: as of a container without a limit)"},
				&cli.IntFlag{Name: "vcpus", Usage: "CPUs of the guest (default: as of a container without a limit)"},
				&cli.IntFlag{Name: "nics", Usage: "network cards of the guest (default: as of any container)"},
				&cli.StringFlag{Name: "tenant", Usage: "`VALUE` of the annotation that the setting template_scope names"},
			},
			Action: createTemplate,
		},
		{
			Name:         "prune",
			Usage:        "remove templates, all or those named; containers that run keep theirs",
			ArgsUsage:    "[key...]",
			OnUsageError: usageError,
			Flags:        []cli.Flag{&cli.DurationFlag{Name: "unused", Usage: "only those that nothing has started from for this `TIME`"}},
			Action:       pruneTemplates,
		},
	},
}

func templateStore(settings *config.Config) template.Store {
	return template.Store{
		Dir:    filepath.Join(settings.Cache, "templates"),
		MaxAge: time.Duration(settings.TemplatesMaxAge), MaxBytes: int64(settings.TemplatesMaxMiB) << 20,
	}
}

func listTemplates(c *cli.Context) error {
	if err := exactArgs(c, 0); err != nil {
		return err
	}
	settings, err := config.Load(c.String("config"))
	if err != nil {
		return err
	}
	all, err := templateStore(settings).List()
	if err != nil {
		return err
	}
	markUsable(c, settings, all)
	switch c.String("format") {
	case "json":
		return json.NewEncoder(c.App.Writer).Encode(all)
	case "table":
		return printTemplates(c.App.Writer, all)
	}
	return errFormat
}

// markUsable marks the templates that this husk's containers can start from. Where no
// container could start, none is.
func markUsable(c *cli.Context, settings *config.Config, all []template.Entry) {
	if len(all) == 0 {
		return
	}
	m, image, err := machineOf(c, settings, &specconv.Plan{})
	if err != nil {
		return // check says why
	}
	here, err := kindOf(m, image.Digest, template.Scope{})
	if err != nil {
		return
	}
	for i := range all {
		all[i].Usable = here.Fits(all[i].Kind)
	}
}

func pruneTemplates(c *cli.Context) error {
	settings, err := config.Load(c.String("config"))
	if err != nil {
		return err
	}
	removed, err := templateStore(settings).Prune(c.Duration("unused"), c.Args().Slice()...)
	if err != nil && len(removed) == 0 {
		return err
	}
	return errors.Join(err, printTemplates(c.App.Writer, removed))
}

func printTemplates(w io.Writer, all []template.Entry) error {
	tw := tabwriter.NewWriter(w, 12, 1, 3, ' ', 0)
	fmt.Fprintln(tw, "KEY\tUSABLE\tACCEL\tRAM\tVCPUS\tNICS\tUSED\tON DISK\tTENANT")
	for _, e := range all {
		usable := "no"
		if e.Usable {
			usable = "yes"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d MiB\t%d\t%d\t%s\t%s\t%s\n", e.Key, usable, e.Kind.Accel, e.Kind.MemoryMiB,
			e.Kind.VCPUs, e.Kind.NICs, e.Used.Format(time.DateTime), units.BytesSize(float64(e.Bytes)), tenant(e.Kind))
	}
	return tw.Flush()
}

// tenant is whom a template is for, safe to print.
func tenant(k template.Kind) string {
	var parts []string
	for _, name := range []string{k.Tenant, k.Part} {
		if name != "" {
			parts = append(parts, strings.Trim(strconv.Quote(name), `"`))
		}
	}
	return strings.Join(parts, "/")
}

// useTemplate finds the memory template for a machine and makes it when there is
// none. Without one the container boots: that is slower and no failure, and the
// plan's warnings say why.
func useTemplate(ctx context.Context, settings *config.Config, m *supervisor.Machine, guestDigest string, scope template.Scope, plan *specconv.Plan) *supervisor.Template {
	t, discarded, err := findOrMake(ctx, settings, m, guestDigest, scope)
	if discarded != nil {
		plan.Warnings = append(plan.Warnings, fmt.Sprintf("memory template %v; it was made again", discarded))
	}
	if err != nil {
		plan.Warnings = append(plan.Warnings, fmt.Sprintf("no memory template, so the container boots: %v", err))
		return nil
	}
	return &supervisor.Template{Store: filepath.Dir(filepath.Dir(t.RAM)), Key: t.Key, RAM: t.RAM, Devices: t.Devices}
}

// findOrMake returns the template and, where one was found that could not be
// used, why.
func findOrMake(ctx context.Context, settings *config.Config, m *supervisor.Machine, guestDigest string, scope template.Scope) (t *template.Template, discarded, err error) {
	kind, err := kindOf(m, guestDigest, scope)
	if err != nil {
		return nil, nil, err
	}
	store := templateStore(settings)
	t, err = store.Find(*kind)
	if !errors.Is(err, template.ErrNone) {
		return t, nil, err
	}
	var unusable *template.DiscardedError
	if errors.As(err, &unusable) {
		discarded = unusable
	}
	logrus.Debugf("making a memory template: %v", err)
	// Its phases are not the container's.
	ctx, cancel := context.WithTimeout(timings.With(ctx, nil), m.BootTimeout)
	defer cancel()
	t, err = store.Make(ctx, *kind, template.Boot(qemu.New(), m.Config(), m.NICs))
	return t, discarded, err
}

// createTemplate makes the template that a container with these limits would
// make, before there is one.
func createTemplate(c *cli.Context) error {
	if err := exactArgs(c, 0); err != nil {
		return err
	}
	settings, err := config.Load(c.String("config"))
	if err != nil {
		return err
	}
	if byTenant := strings.HasPrefix(settings.TemplateScope, config.ScopeAnnotation); byTenant != c.IsSet("tenant") || settings.TemplateScope == config.ScopeContainer {
		return fmt.Errorf("no container starts from such a template: setting template_scope is %q", settings.TemplateScope)
	}
	plan := &specconv.Plan{VM: specconv.VM{MemoryMiB: c.Int("memory"), VCPUs: c.Int("vcpus"), NICs: c.Int("nics")}}
	if err := plan.VM.Check(); err != nil {
		return err
	}
	m, image, err := machineOf(c, settings, plan)
	if err != nil {
		return err
	}
	scope := template.Scope{Tenant: c.String("tenant")}
	if kind, err := kindOf(m, image.Digest, scope); err == nil {
		templateStore(settings).Retry(kind.Key())
	}
	t, _, err := findOrMake(c.Context, settings, m, image.Digest, scope)
	if err != nil {
		return err
	}
	all, err := templateStore(settings).List()
	if err != nil {
		return err
	}
	markUsable(c, settings, all)
	return printTemplates(c.App.Writer, slices.DeleteFunc(all, func(e template.Entry) bool { return e.Key != t.Key }))
}

func kindOf(m *supervisor.Machine, guestDigest string, scope template.Scope) (*template.Kind, error) {
	cpu, err := template.HostCPU()
	if err != nil {
		return nil, err
	}
	vmm, err := template.FileIdentity(m.QEMU)
	if err != nil {
		return nil, err
	}
	husk, err := template.FileIdentity("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	return &template.Kind{
		Husk: husk, Guest: guestDigest, VMM: vmm, Accel: string(m.Accel), CPU: cpu,
		Machine: qemu.Fingerprint(m.Config(), m.NICs), Host: unix.ByteSliceToString(uts.Release[:]),
		MemoryMiB: m.MemoryMiB, VCPUs: m.VCPUs, NICs: m.NICs, Cmdline: m.KernelParams,
		Tenant: scope.Tenant, Part: scope.Part,
	}, nil
}
