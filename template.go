package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/config"
	"github.com/huskvm/husk/host/create"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/template"
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

func listTemplates(c *cli.Context) error {
	if err := exactArgs(c, 0); err != nil {
		return err
	}
	settings, err := config.Load(c.String("config"))
	if err != nil {
		return err
	}
	all, err := template.StoreOf(settings).List()
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

// markUsable marks the templates from which containers of this husk can start. If no container
// could start, it marks none.
func markUsable(c *cli.Context, settings *config.Config, all []template.Entry) {
	if len(all) == 0 {
		return
	}
	chosen, err := create.Choose(c.Context, settings, specconv.VM{})
	if err != nil {
		return // check says why
	}
	here, err := chosen.Kind(template.Scope{})
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
	removed, err := template.StoreOf(settings).Prune(c.Duration("unused"), c.Args().Slice()...)
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

// tenant returns for whom a template is, safe to print.
func tenant(k template.Kind) string {
	var parts []string
	for _, name := range []string{k.Tenant, k.Part} {
		if name != "" {
			parts = append(parts, strings.Trim(strconv.Quote(name), `"`))
		}
	}
	return strings.Join(parts, "/")
}

// createTemplate makes the template that a container with these limits would make.
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
	vm := specconv.VM{MemoryMiB: c.Int("memory"), VCPUs: c.Int("vcpus"), NICs: c.Int("nics")}
	if err := vm.Check(); err != nil {
		return err
	}
	chosen, err := create.Choose(c.Context, settings, vm)
	if err != nil {
		return err
	}
	scope := template.Scope{Tenant: c.String("tenant")}
	if kind, err := chosen.Kind(scope); err == nil {
		template.StoreOf(settings).Retry(kind.Key())
	}
	t, _, err := chosen.FindOrMakeTemplate(c.Context, settings, scope)
	if err != nil {
		return err
	}
	all, err := template.StoreOf(settings).List()
	if err != nil {
		return err
	}
	markUsable(c, settings, all)
	return printTemplates(c.App.Writer, slices.DeleteFunc(all, func(e template.Entry) bool { return e.Key != t.Key }))
}
