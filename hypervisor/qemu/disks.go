package qemu

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/huskvm/husk/hypervisor"
)

// maxSerial is the number of bytes that virtio-blk has for a disk's serial number.
const maxSerial = 20

func checkDisks(cfg hypervisor.Config) error {
	if len(cfg.Disks) > 0 && cfg.RAMFile != "" {
		return errors.New("a machine with disks is no template's")
	}
	for i, d := range cfg.Disks {
		switch {
		case d.File == nil:
			return fmt.Errorf("disk %d has no file", i)
		case d.Serial == "" || len(d.Serial) > maxSerial:
			return fmt.Errorf("disk %d: serial number %q is not of 1 to %d bytes", i, d.Serial, maxSerial)
		case !isBlockSize(d.LogicalBlock) || !isBlockSize(d.PhysicalBlock) || d.LogicalBlock > d.PhysicalBlock:
			return fmt.Errorf("disk %d: blocks of %d and %d bytes", i, d.LogicalBlock, d.PhysicalBlock)
		}
	}
	return nil
}

// isBlockSize says whether QEMU accepts a block size: powers of two from 512 bytes to 2 MiB.
func isBlockSize(n int) bool { return n >= 512 && n <= 2<<20 && n&(n-1) == 0 }

// addDisk adds a disk without the host's page cache: what the guest has flushed is on the
// device, and the guest sees what others write there. The device is not locked, because it is
// not locked either when a container on the host opens it.
func (m *machine) addDisk(i int, d hypervisor.Disk, fd int) {
	id, set, readOnly := "disk"+strconv.Itoa(i), strconv.Itoa(i), "off"
	if d.ReadOnly {
		readOnly = "on"
	}
	m.backends = append(
		m.backends,
		option{"-add-fd", with("", "fd", strconv.Itoa(fd), "set", set)},
		option{"-blockdev", with(
			"", "driver", "host_device", "node-name", id, "filename", "/dev/fdset/"+set,
			"read-only", readOnly, "cache.direct", "on", "discard", "unmap", "locking", "off",
		)},
	)
	m.add(with("virtio-blk-device", "drive", id, "serial", d.Serial,
		"logical_block_size", strconv.Itoa(d.LogicalBlock), "physical_block_size", strconv.Itoa(d.PhysicalBlock)))
}
