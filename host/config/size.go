package config

import "time"

// Bounds of a guest's size, for the settings file, annotations and the command line.
const (
	MinMemoryMiB = 128
	MaxMemoryMiB = 1 << 20
	MaxVCPUs     = 255 // the least is 1, as for NICs
	MaxNICs      = 8
)

// Defaults if neither the settings file nor the container says anything.
const (
	// MaxDefaultMemoryMiB bounds the guest's RAM, which by default follows the host's. A
	// template of this size takes 430 MiB on disk (one of 1 GiB takes 146, one of 24 GiB 583),
	// nearly all of it page structures. A start from it takes at most a tenth longer (ADR 25).
	MaxDefaultMemoryMiB = 16 << 10
	MaxDefaultVCPUs     = 4
	DefaultNICs         = 4 // three for networks that the container is connected to later
	BootTimeoutKVM      = 20 * time.Second
	BootTimeoutTCG      = 120 * time.Second
)
