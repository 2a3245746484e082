//go:build !amd64

package main

// hypervisorVendor is empty where there is no CPUID.
func hypervisorVendor() string { return "" }
