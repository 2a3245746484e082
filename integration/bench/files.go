package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// How husk exports files and mounts them. Bare guests do the same, so that only husk itself
// differs. checkExport compares both with what husk does.
const (
	husksExport = "security_model=passthrough,multidevs=remap"
	husksMount  = "trans=virtio,version=9p2000.L,cache=mmap,msize=512000,access=client"
	husksTag    = "husk"
)

// text returns what a container of the bundle prints.
func (b *bench) text(r *oci, bundle string) (string, error) {
	var said []byte
	err := r.output(bundle, b.id(), func(out io.Reader) (err error) {
		said, err = io.ReadAll(io.LimitReader(out, mib))
		return err
	})
	return string(said), err
}

// rates adds the figures that testprog has printed for one kind of work.
func (b *bench) rates(place, subject, printed string) error {
	var rates map[string][]float64
	if err := json.Unmarshal([]byte(printed), &rates); err != nil {
		return fmt.Errorf("%s: %w in %q", subject, err, printed)
	}
	for _, what := range slices.Sorted(maps.Keys(rates)) {
		name, unit, _ := strings.Cut(what, ", ")
		figure := place + name
		b.results.values(figure, subject, unit, figure, rates[what])
	}
	return nil
}

// rootfsFiles and volumeFiles measure work on files in a rootfs and in a volume.
func (b *bench) rootfsFiles() error { return b.files("/tmp", "rootfs: ") }
func (b *bench) volumeFiles() error { return b.files("/volume", "volume: ") }

// files measures work on files in a container's directory, and in bare QEMU's mount of the same
// export.
func (b *bench) files(dir, place string) error {
	vm, err := b.huskVM()
	if err != nil {
		return err
	}
	if err := b.checkExport(vm); err != nil {
		return err
	}
	volume := filepath.Join(b.dir, "volume")
	if err := os.MkdirAll(volume, 0o755); err != nil {
		return err
	}
	samples := strconv.Itoa(b.samples)
	bundle := b.bundle("files" + strings.ReplaceAll(dir, "/", "-"))
	err = b.makeBundle(bundle, filepath.Join(b.dir, "rootfs"), []string{"testprog", "filework", dir, samples},
		specs.Mount{Destination: "/volume", Type: "bind", Source: volume, Options: []string{"rbind", "rw"}})
	if err != nil {
		return err
	}
	for _, r := range b.runtimes {
		said, err := b.text(r, bundle)
		if err != nil {
			return err
		}
		if err := b.rates(place, r.name, said); err != nil {
			return err
		}
	}
	g, err := b.bareGuest(vm, volume, husksExport, nil)
	if err != nil {
		return err
	}
	defer g.stop()
	if err := g.command(io.Discard, "mount", husksTag, "/share", husksMount); err != nil {
		return err
	}
	said, err := g.text("filework", "/share", samples)
	if err != nil {
		return err
	}
	return b.rates(place, floorName, said)
}

// checkExport fails if husk does not export and mount in the same way as the floors.
func (b *bench) checkExport(vm *vmArgs) error {
	fsdev := vm.value("-fsdev")
	if !strings.HasSuffix(fsdev, husksExport) {
		return fmt.Errorf("husk exports %q, bare QEMU %q: the floor is not one", fsdev, husksExport)
	}
	bundle := b.bundle("mountinfo")
	err := b.makeBundle(bundle, filepath.Join(b.dir, "rootfs"), []string{"cat", "/proc/self/mountinfo"})
	if err != nil {
		return err
	}
	said, err := b.text(b.runtimes[0], bundle)
	if err != nil {
		return err
	}
	for line := range strings.Lines(said) {
		if f := strings.Fields(line); len(f) < 5 || f[4] != "/" {
			continue
		}
		for option := range strings.SplitSeq(husksMount, ",") {
			// The kernel does not show the default version, and before Linux 6.4 it shows only
			// the kind of cache.
			shown := strings.TrimPrefix(option, "cache=")
			if !strings.HasPrefix(option, "version=") && !strings.Contains(line, shown) {
				return fmt.Errorf("husk's rootfs is not mounted with %s, as the floor's: %q", option, line)
			}
		}
		return nil
	}
	return fmt.Errorf("no rootfs in %q", bytes.TrimSpace([]byte(said)))
}
