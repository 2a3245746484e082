package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// cpuid executes the CPUID instruction.
func cpuid(leaf uint32) (eax, ebx, ecx, edx uint32)

// vendor prints the hypervisor's signature of CPUID leaf 0x40000000: "KVMKVMKVM" or
// "TCGTCGTCGTCG". No software on the host can make an emulated processor show KVM's by
// accident.
func vendor([]string) error {
	_, ebx, ecx, edx := cpuid(0x40000000)
	var b []byte
	for _, register := range []uint32{ebx, ecx, edx} {
		b = binary.LittleEndian.AppendUint32(b, register)
	}
	fmt.Printf("%s\n", bytes.TrimRight(b, "\x00"))
	return nil
}
