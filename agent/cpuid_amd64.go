package main

import (
	"encoding/binary"
	"strings"
)

// cpuid executes the CPUID instruction. It is needed because /proc and /sys name the hypervisor
// only if it is Xen.
func cpuid(leaf, subleaf uint32) (eax, ebx, ecx, edx uint32)

// hypervisorVendor returns the signature of CPUID leaf 0x40000000, such as "KVMKVMKVM" or
// "TCGTCGTCGTCG". It is "" if the processor does not say that it is virtual.
func hypervisorVendor() string {
	if _, _, ecx, _ := cpuid(1, 0); ecx&(1<<31) == 0 {
		return ""
	}
	_, b, c, d := cpuid(0x40000000, 0)
	var s []byte
	for _, r := range []uint32{b, c, d} {
		s = binary.LittleEndian.AppendUint32(s, r)
	}
	return strings.TrimRight(string(s), "\x00")
}
