package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/protocol"
)

const (
	// diskModule is the name that the driver of the guest's disks has in demandFile.
	diskModule = "virtio_blk"
	// sysBlock has a directory for each disk.
	sysBlock = "/sys/block"
)

// plugDisks replaces the numbers in the container's block device nodes, and in the device rules
// about them, by the numbers that the guest's kernel has given to its disks. list is demandFile
// and sysDir is sysBlock, except in tests.
func plugDisks(spec *specs.Spec, disks []*protocol.Disk, list, sysDir string) error {
	if spec.Linux == nil {
		return nil
	}
	if len(disks) == 0 {
		translateRules(spec.Linux.Resources, nil, nil)
		return nil
	}
	if err := loadOnDemand(list, diskModule); err != nil {
		return fmt.Errorf("load driver of disks: %w", err)
	}
	numbers, err := diskNumbers(sysDir)
	if err != nil {
		return fmt.Errorf("find disks: %w", err)
	}
	was := make([]specs.LinuxDevice, len(spec.Linux.Devices))
	copy(was, spec.Linux.Devices)
	for _, d := range disks {
		number, ok := numbers[d.Serial]
		if !ok {
			return fmt.Errorf("disk %q for the host's block device %d:%d is not there: the guest's kernel needs %s, built in or as a module",
				d.Serial, d.Major, d.Minor, diskModule)
		}
		for i, node := range was {
			if node.Type == "b" && node.Major == int64(d.Major) && node.Minor == int64(d.Minor) {
				spec.Linux.Devices[i].Major, spec.Linux.Devices[i].Minor = number.major, number.minor
			}
		}
	}
	translateRules(spec.Linux.Resources, disks, numbers)
	return nil
}

// translateRules replaces each rule for a block device number of the host by rules for the
// guest's disks that it concerns. A rule that concerns none is removed, because in the guest
// that number may belong to another device.
func translateRules(r *specs.LinuxResources, disks []*protocol.Disk, numbers map[string]diskNumber) {
	if r == nil {
		return
	}
	about := func(want *int64, number uint32) bool { return want == nil || *want == -1 || *want == int64(number) }
	var rules []specs.LinuxDeviceCgroup
	for _, rule := range r.Devices {
		if rule.Type != "b" || about(rule.Major, ^uint32(0)) && about(rule.Minor, ^uint32(0)) {
			rules = append(rules, rule)
			continue
		}
		for _, d := range disks {
			if about(rule.Major, d.Major) && about(rule.Minor, d.Minor) {
				n, translated := numbers[d.Serial], rule
				translated.Major, translated.Minor = &n.major, &n.minor
				rules = append(rules, translated)
			}
		}
	}
	r.Devices = rules
}

type diskNumber struct{ major, minor int64 }

// diskNumbers returns the device number of each disk that has a serial number.
func diskNumbers(sysDir string) (map[string]diskNumber, error) {
	dirs, err := filepath.Glob(filepath.Join(sysDir, "*", "serial"))
	if err != nil {
		return nil, err
	}
	numbers := make(map[string]diskNumber, len(dirs))
	for _, file := range dirs {
		serial, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		dev, err := os.ReadFile(filepath.Join(filepath.Dir(file), "dev"))
		if err != nil {
			return nil, err
		}
		var n diskNumber
		if _, err := fmt.Sscanf(string(dev), "%d:%d", &n.major, &n.minor); err != nil {
			return nil, fmt.Errorf("%s/dev holds %q", filepath.Dir(file), dev)
		}
		numbers[strings.TrimSpace(string(serial))] = n
	}
	return numbers, nil
}
