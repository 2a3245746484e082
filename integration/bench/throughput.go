package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// text is what a container of the bundle prints.
func (b *bench) text(r *oci, bundle string) (string, error) {
	var said []byte
	err := r.output(bundle, b.id(), func(out io.Reader) (err error) {
		said, err = io.ReadAll(io.LimitReader(out, 1<<20))
		return err
	})
	return string(said), err
}

// stdout times how quickly a container's output arrives.
func (b *bench) stdout() error {
	bundle := b.bundle("stdout")
	if err := b.makeBundle(bundle, filepath.Join(b.dir, "rootfs"), []string{"testprog", "zeros", fmt.Sprint(b.mib)}); err != nil {
		return err
	}
	for _, r := range b.runtimes {
		var n int64
		took, err := timed(func() error {
			return r.output(bundle, b.id(), func(out io.Reader) (err error) {
				n, err = io.Copy(io.Discard, out)
				return err
			})
		})
		if err != nil {
			return err
		}
		if n != int64(b.mib)<<20 {
			return fmt.Errorf("%s: %d bytes arrived of %d MiB", r.name, n, b.mib)
		}
		b.results.values(fmt.Sprintf("stdout, %d MiB", b.mib), r.name, "MiB/s", "", []float64{float64(b.mib) / took.Seconds()})
	}
	return nil
}

// files times work on files, in the rootfs and in a volume.
func (b *bench) files() error {
	for _, r := range b.runtimes {
		volume := filepath.Join(b.dir, "volume-"+r.name)
		if err := os.MkdirAll(volume, 0o755); err != nil {
			return err
		}
		for _, place := range []string{"rootfs", "volume"} {
			dir := map[string]string{"rootfs": "/tmp", "volume": "/volume"}[place]
			bundle := b.bundle("files-" + place + "-" + r.name)
			err := b.makeBundle(bundle, filepath.Join(b.dir, "rootfs"), []string{"testprog", "filework", dir},
				specs.Mount{Destination: "/volume", Type: "bind", Source: volume, Options: []string{"rbind", "rw"}})
			if err != nil {
				return err
			}
			said, err := b.text(r, bundle)
			if err != nil {
				return err
			}
			var rates map[string]float64
			if err := json.Unmarshal([]byte(said), &rates); err != nil {
				return fmt.Errorf("%s: %w in %q", r.name, err, said)
			}
			for _, name := range slices.Sorted(maps.Keys(rates)) {
				unit := "MiB/s"
				if name == "files created, read and removed" || name == "random 4 KiB reads and writes" {
					unit = "/s"
				}
				b.results.values(place+": "+name, r.name, unit, "", []float64{rates[name]})
			}
		}
	}
	return nil
}
