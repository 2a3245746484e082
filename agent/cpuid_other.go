//go:build !amd64

package main

// hypervisorVendor returns "" on processors without CPUID.
func hypervisorVendor() string { return "" }
