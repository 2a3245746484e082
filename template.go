package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/config"
	"github.com/huskvm/husk/hypervisor/qemu"
	"github.com/huskvm/husk/supervisor"
	"github.com/huskvm/husk/template"
)

var templateCommand = &cli.Command{
	Name:  "template",
	Usage: "look after the memory templates that containers start from",
	Subcommands: []*cli.Command{
		{
			Name:   "list",
			Usage:  "list templates",
			Flags:  []cli.Flag{formatFlag()},
			Action: listTemplates,
		},
		{
			Name:   "prune",
			Usage:  "remove templates; containers that run keep theirs",
			Flags:  []cli.Flag{&cli.DurationFlag{Name: "unused", Usage: "only those that nothing has started from for this `TIME`"}},
			Action: pruneTemplates,
		},
	},
}

func templateStore(settings *config.Config) template.Store {
	return template.Store{Dir: filepath.Join(settings.Cache, "templates")}
}

func listTemplates(c *cli.Context) error {
	settings, err := config.Load(c.String("config"))
	if err != nil {
		return err
	}
	all, err := templateStore(settings).List()
	if err != nil {
		return err
	}
	if c.String("format") == "json" {
		return json.NewEncoder(c.App.Writer).Encode(all)
	}
	return printTemplates(c.App.Writer, all)
}

func pruneTemplates(c *cli.Context) error {
	settings, err := config.Load(c.String("config"))
	if err != nil {
		return err
	}
	removed, err := templateStore(settings).Prune(c.Duration("unused"))
	if perr := printTemplates(c.App.Writer, removed); err == nil {
		err = perr
	}
	return err
}

func printTemplates(w io.Writer, all []template.Entry) error {
	tw := tabwriter.NewWriter(w, 12, 1, 3, ' ', 0)
	fmt.Fprintln(tw, "KEY\tACCEL\tRAM\tVCPUS\tNICS\tUSED\tON DISK")
	for _, e := range all {
		fmt.Fprintf(tw, "%s\t%s\t%d MiB\t%d\t%d\t%s\t%s\n", e.Key, e.Kind.Accel, e.Kind.MemoryMiB,
			e.Kind.VCPUs, e.Kind.NICs, e.Used.Format(time.DateTime), units.BytesSize(float64(e.Bytes)))
	}
	return tw.Flush()
}

// useTemplate finds the memory template for a machine and makes it when there is
// none. Without one the container boots: that is slower and no failure.
func useTemplate(ctx context.Context, settings *config.Config, m *supervisor.Machine, guestDigest string) *supervisor.Template {
	kind, err := kindOf(m, guestDigest)
	if err != nil {
		logrus.Debugf("no memory template: %v", err)
		return nil
	}
	store := templateStore(settings)
	t, err := store.Find(*kind)
	if errors.Is(err, template.ErrNone) {
		logrus.Debugf("making a memory template: %v", err)
		ctx, cancel := context.WithTimeout(ctx, m.BootTimeout)
		defer cancel()
		t, err = store.Make(ctx, *kind, template.Boot(qemu.New(), m.Config(), m.NICs))
	}
	if err != nil {
		logrus.Debugf("no memory template: %v", err)
		return nil
	}
	return &supervisor.Template{Store: store.Dir, Key: t.Key, RAM: t.RAM, Devices: t.Devices}
}

func kindOf(m *supervisor.Machine, guestDigest string) (*template.Kind, error) {
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
	return &template.Kind{
		Husk: husk, Guest: guestDigest, VMM: vmm, Accel: string(m.Accel), CPU: cpu,
		MemoryMiB: m.MemoryMiB, VCPUs: m.VCPUs, NICs: m.NICs, Cmdline: m.KernelParams,
	}, nil
}
