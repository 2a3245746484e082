// Package report gathers what a maintainer needs to know about a host on which husk fails. It
// is one text, which its reader can check before sending it.
package report

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/huskvm/husk/host/check"
	"github.com/huskvm/husk/host/config"
	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/template"
)

// Bounds of what is taken from one file, in bytes: the end of a log, the beginning of other
// files.
const (
	maxLog  = 16 << 10
	maxFile = 64 << 10
)

// Options say what to report on.
type Options struct {
	Version    string // what `husk --version` prints
	ConfigPath string // settings file; empty: the default one
	StateRoot  string // value of --root
	Templates  template.Store
}

// Write writes the report. In place of a part that cannot be read it writes the reason, and
// goes on. The report contains neither environment nor arguments of a container's processes.
func Write(ctx context.Context, w io.Writer, o Options) error {
	var b strings.Builder
	section := func(title string, content func(io.Writer) error) {
		fmt.Fprintf(&b, "== %s\n", title)
		if err := content(&b); err != nil {
			fmt.Fprintf(&b, "not to be had: %v\n", err)
		}
		fmt.Fprintln(&b)
	}
	section("husk", func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%stime: %s\n", o.Version, time.Now().UTC().Format(time.RFC3339))
		return err
	})
	section("checks", check.Run(ctx, check.Options{ConfigPath: o.ConfigPath, StateRoot: o.StateRoot}).Print)
	section("settings", func(w io.Writer) error { return writeSettings(w, o.ConfigPath) })
	section("containers", func(w io.Writer) error { return writeContainers(w, o.StateRoot) })
	section("templates", func(w io.Writer) error { return writeTemplates(w, o.Templates) })
	for _, path := range []string{"/etc/os-release", "/proc/version", "/proc/cmdline", "/proc/meminfo", "/proc/cgroups"} {
		section(path, func(w io.Writer) error { return writeFile(w, path) })
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func writeSettings(w io.Writer, path string) error {
	all, err := config.Show(path)
	if err != nil {
		return err
	}
	for _, e := range all {
		if e.From != "default" {
			fmt.Fprintf(w, "%s = %s (%s)\n", e.Key, e.Value, e.From)
		}
	}
	return nil
}

func writeContainers(w io.Writer, root string) error {
	containers, broken, err := state.List(root)
	if err != nil {
		return err
	}
	for _, err := range broken {
		fmt.Fprintln(w, err)
	}
	for _, c := range containers {
		fmt.Fprintf(w, "%s: %s, created %s, accel %s\n", c.ID, c.Status(), c.Created.Format(time.RFC3339), c.Accel)
		if err := writeTail(w, filepath.Join(root, c.ID, state.LogFile)); err != nil {
			fmt.Fprintf(w, "its log: %v\n", err)
		}
	}
	return nil
}

func writeTemplates(w io.Writer, store template.Store) error {
	all, err := store.List()
	if err != nil {
		return err
	}
	for _, t := range all {
		line, err := json.Marshal(t)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s\n", line)
	}
	return nil
}

// writeTail writes the end of a log, where the last failure is.
func writeTail(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	_, err = io.Copy(w, io.NewSectionReader(f, max(0, info.Size()-maxLog), maxLog))
	return err
}

func writeFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, io.LimitReader(f, maxFile))
	return err
}
