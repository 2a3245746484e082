package main

import (
	"encoding/binary"
	"strings"
)

// cpuid runs the CPUID instruction. Nothing in /proc or /sys names the vendor of
// a hypervisor that is not Xen.
func cpuid(leaf, subleaf uint32) (eax, ebx, ecx, edx uint32)

// hypervisorVendor returns the signature at leaf 0x40000000, e.g. "KVMKVMKVM" or
// "TCGTCGTCGTCG", and "" on a processor that says it is not virtual.
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
