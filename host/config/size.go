package config

import "time"

// Bounds of a guest's size, in the settings file, in annotations and on the command line.
const (
	MinMemoryMiB = 128
	MaxMemoryMiB = 1 << 20
	MaxVCPUs     = 255 // 1 is the least, as of NICs
	MaxNICs      = 8
)

// Defaults where neither the settings file nor the container says anything.
const (
	// MaxDefaultMemoryMiB bounds the guest's RAM, which follows the host's. A template of
	// so much is 430 MiB on disk (of 1 GiB: 146, of 24 GiB: 583), nearly all of that page
	// structures; a start from it takes at most a tenth longer (ADR 25).
	MaxDefaultMemoryMiB = 16 << 10
	MaxDefaultVCPUs     = 4
	DefaultNICs         = 4 // three for networks that the container is connected to later
	BootTimeoutKVM      = 20 * time.Second
	BootTimeoutTCG      = 120 * time.Second
)
