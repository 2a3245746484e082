package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/specconv"
)

const configFile = "config.json"

var specCommand = &cli.Command{
	Name:         "spec",
	Usage:        "write a config.json to start from, which runs sh in rootfs",
	OnUsageError: usageError,
	Flags: []cli.Flag{
		&cli.StringFlag{Name: "bundle", Aliases: []string{"b"}, Usage: "write it to the bundle `DIR` (default: the working directory)"},
		&cli.BoolFlag{Name: "rootless", Usage: "accepted for runc's sake and refused: husk needs root"},
	},
	Action: func(c *cli.Context) error {
		if err := exactArgs(c, 0); err != nil {
			return err
		}
		if c.Bool("rootless") {
			return errors.New("--rootless is not supported: husk needs root")
		}
		return writeSpec(c.String("bundle"))
	},
}

// writeSpec writes the example to config.json in the host directory bundle. It does not
// overwrite a file.
func writeSpec(bundle string) error {
	b, err := json.MarshalIndent(specconv.Example(), "", "\t")
	if err != nil {
		return fmt.Errorf("encode spec: %w", err)
	}
	path := filepath.Join(bundle, configFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("File %s exists. Remove it first", configFile) //nolint:staticcheck // runc's text
	}
	if err != nil {
		return fmt.Errorf("write spec: %w", err)
	}
	_, err = f.Write(append(b, '\n'))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		// An incomplete config.json would be refused as existing the next time.
		return fmt.Errorf("write spec: %w", errors.Join(err, os.Remove(path)))
	}
	return nil
}
