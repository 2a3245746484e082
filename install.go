package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/install"
)

var installCommand = &cli.Command{
	Name:         "install",
	Usage:        "make husk known to an engine: docker, podman or containerd",
	ArgsUsage:    "<engine>",
	OnUsageError: usageError,
	Flags: append(installFlags(),
		&cli.StringFlag{Name: "binary", Usage: "`PATH` of husk for the engine to call (default: this one)"}),
	Action: func(c *cli.Context) error {
		engine, err := engineArg(c)
		if err != nil {
			return err
		}
		binary := c.String("binary")
		if binary == "" {
			if binary, err = os.Executable(); err != nil {
				return fmt.Errorf("find husk's own path: %w", err)
			}
		}
		if binary, err = filepath.Abs(binary); err != nil {
			return fmt.Errorf("resolve path of husk: %w", err)
		}
		change, err := engine.Add(c.String("file"), binary)
		if err != nil {
			return fmt.Errorf("install into %s: %w", engine.Name, err)
		}
		return applyChange(c, engine, change, "then try: "+engine.Try)
	},
}

// installFlags returns new flags for each of the two verbs, because urfave/cli keeps a flag's
// value in the flag itself.
func installFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "dry-run", Usage: "print the file as it would be, and change nothing"},
		&cli.StringFlag{Name: "file", Usage: "the engine's configuration `FILE`, where it is not the usual one"},
	}
}

func engineArg(c *cli.Context) (*install.Engine, error) {
	if err := exactArgs(c, 1); err != nil {
		return nil, err
	}
	engine := install.Find(c.Args().First())
	if engine == nil {
		var names []string
		for _, e := range install.Engines {
			names = append(names, e.Name)
		}
		return nil, fmt.Errorf("%s: unknown engine %q: husk knows %s", c.Command.Name, c.Args().First(), strings.Join(names, ", "))
	}
	return engine, nil
}

func applyChange(c *cli.Context, engine *install.Engine, change *install.Change, next string) error {
	out := c.App.Writer
	if change.Nothing() {
		fmt.Fprintf(out, "%s is as it should be: nothing to do\n", change.Path)
		return nil
	}
	if c.Bool("dry-run") {
		if change.After == nil {
			fmt.Fprintf(out, "%s would be removed\n", change.Path)
			return nil
		}
		fmt.Fprintf(out, "%s would be:\n%s", change.Path, change.After)
		return nil
	}
	backup, err := change.Apply(time.Now())
	if err != nil {
		return fmt.Errorf("%s: %w", c.Command.Name, err)
	}
	fmt.Fprintf(out, "changed %s\n", change.Path)
	if backup != "" {
		fmt.Fprintf(out, "what it was is in %s\n", backup)
	}
	fmt.Fprintln(out, engine.Reload)
	if next != "" {
		fmt.Fprintln(out, next)
	}
	return nil
}
