package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"

	"github.com/docker/go-units"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/limits"
	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor/control"
)

var updateCommand = &cli.Command{
	Name:         "update",
	Usage:        "change a container's limits; limits that are not given stay as they are",
	ArgsUsage:    "<container-id>",
	OnUsageError: usageError,
	Flags: []cli.Flag{
		&cli.StringFlag{
			Name: "resources", Aliases: []string{"r"},
			Usage: "read them from `FILE`, - for stdin, in the form of linux.resources in config.json; all other options are ignored then",
		},
		&cli.IntFlag{Name: "blkio-weight", Usage: "block I/O `WEIGHT`, 10 to 1000"},
		&cli.StringFlag{Name: "cpu-period", Usage: "length of a scheduling period in `MICROSECONDS`"},
		&cli.StringFlag{Name: "cpu-quota", Usage: "CPU time in each period in `MICROSECONDS`, -1 for no limit"},
		&cli.StringFlag{Name: "cpu-burst", Usage: "unused quota that may be used later, in `MICROSECONDS`"},
		&cli.StringFlag{Name: "cpu-share", Usage: "relative CPU weight, 2 to 262144"},
		&cli.StringFlag{Name: "cpu-rt-period", Usage: "realtime period in `MICROSECONDS`"},
		&cli.StringFlag{Name: "cpu-rt-runtime", Usage: "realtime CPU time in each period in `MICROSECONDS`"},
		&cli.StringFlag{Name: "cpuset-cpus", Usage: "`LIST` of CPUs to use, such as 0-2,7"},
		&cli.StringFlag{Name: "cpuset-mems", Usage: "`LIST` of memory nodes to use"},
		&cli.StringFlag{Name: "cpu-idle", Usage: "1: run only when nothing else wants to, 0: normally"},
		&cli.StringFlag{Name: "kernel-memory", Hidden: true},
		&cli.StringFlag{Name: "kernel-memory-tcp", Hidden: true},
		&cli.StringFlag{Name: "memory", Usage: "memory limit in `BYTES`, or with a unit (100m), -1 for none"},
		&cli.StringFlag{Name: "memory-reservation", Usage: "soft memory limit, likewise"},
		&cli.StringFlag{Name: "memory-swap", Usage: "memory and swap together, likewise"},
		&cli.Int64Flag{Name: "pids-limit", Usage: "`NUMBER` of processes and threads, -1 for no limit"},
		&cli.StringFlag{Name: "l3-cache-schema", Usage: "refused: Intel RDT is not supported"},
		&cli.StringFlag{Name: "mem-bw-schema", Usage: "refused: Intel RDT is not supported"},
	},
	Action: func(c *cli.Context) error {
		if err := exactArgs(c, 1); err != nil {
			return err
		}
		_, supervisor, err := control.Open(c.Context, c.String("root"), c.Args().First(), state.Update)
		if err != nil {
			return err
		}
		defer supervisor.Close()
		asked, err := resources(c)
		if err != nil {
			return err
		}
		return limits.Update(c.Context, supervisor, asked)
	},
}

// resources returns what update has to change.
func resources(c *cli.Context) (*specs.LinuxResources, error) {
	if c.String("l3-cache-schema") != "" {
		return nil, errors.New("Intel RDT/CAT: l3 cache schema is not enabled") //nolint:staticcheck // runc's text
	}
	if c.String("mem-bw-schema") != "" {
		return nil, errors.New("Intel RDT/MBA: memory bandwidth schema is not enabled") //nolint:staticcheck // runc's text
	}
	switch path := c.String("resources"); path {
	case "":
		return resourcesFromFlags(c)
	case "-":
		return readResources(os.Stdin)
	default:
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return readResources(f)
	}
}

// maxResources bounds what is read, in bytes. An engine sends less than a kilobyte.
const maxResources = 1 << 20

// readResources decodes the first JSON value. Engines may leave the pipe open after it.
func readResources(r io.Reader) (*specs.LinuxResources, error) {
	res := &specs.LinuxResources{}
	if err := json.NewDecoder(io.LimitReader(r, maxResources)).Decode(res); err != nil {
		return nil, fmt.Errorf("read resources: %w", err)
	}
	return res, nil
}

func resourcesFromFlags(c *cli.Context) (*specs.LinuxResources, error) {
	cpu := &specs.LinuxCPU{Cpus: c.String("cpuset-cpus"), Mems: c.String("cpuset-mems")}
	memory := &specs.LinuxMemory{}
	for _, err := range []error{
		setFlag(c, "cpu-period", parseUnsigned, &cpu.Period),
		setFlag(c, "cpu-burst", parseUnsigned, &cpu.Burst),
		setFlag(c, "cpu-share", parseUnsigned, &cpu.Shares),
		setFlag(c, "cpu-rt-period", parseUnsigned, &cpu.RealtimePeriod),
		setFlag(c, "cpu-quota", parseSigned, &cpu.Quota),
		setFlag(c, "cpu-rt-runtime", parseSigned, &cpu.RealtimeRuntime),
		setFlag(c, "cpu-idle", parseSigned, &cpu.Idle),
		setFlag(c, "memory", parseBytes, &memory.Limit),
		setFlag(c, "memory-reservation", parseBytes, &memory.Reservation),
		setFlag(c, "memory-swap", parseBytes, &memory.Swap),
		setFlag(c, "kernel-memory", parseBytes, &memory.Kernel), //nolint:staticcheck // deprecated, but refused only if known
		setFlag(c, "kernel-memory-tcp", parseBytes, &memory.KernelTCP),
	} {
		if err != nil {
			return nil, err
		}
	}
	r := &specs.LinuxResources{}
	if *cpu != (specs.LinuxCPU{}) {
		r.CPU = cpu
	}
	if *memory != (specs.LinuxMemory{}) {
		r.Memory = memory
	}
	// For these two 0 means "do not change", as with runc.
	if n := c.Int64("pids-limit"); n != 0 {
		r.Pids = &specs.LinuxPids{Limit: &n}
	}
	if n := c.Int("blkio-weight"); n != 0 {
		if n < 0 || n > math.MaxUint16 {
			return nil, fmt.Errorf("invalid value for blkio-weight: %d is not between 10 and 1000", n)
		}
		weight := uint16(n)
		r.BlockIO = &specs.LinuxBlockIO{Weight: &weight}
	}
	return r, nil
}

// setFlag points to at the flag's value if it was given. As with runc an empty string counts as
// not given.
func setFlag[T any](c *cli.Context, name string, parse func(string) (T, error), to **T) error {
	s := c.String(name)
	if s == "" {
		return nil
	}
	v, err := parse(s)
	if err != nil {
		return fmt.Errorf("invalid value for %s: %w", name, err)
	}
	*to = &v
	return nil
}

func parseUnsigned(s string) (uint64, error) { return strconv.ParseUint(s, 10, 64) }
func parseSigned(s string) (int64, error)    { return strconv.ParseInt(s, 10, 64) }

func parseBytes(s string) (int64, error) {
	if s == "-1" {
		return -1, nil
	}
	return units.RAMInBytes(s)
}
