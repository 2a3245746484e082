package qemu

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/hypervisor"
)

const (
	// kvmGetAPIVersion is KVM_GET_API_VERSION of linux/kvm.h, and kvmAPIVersion
	// the only answer there has been since Linux 2.6.22.
	kvmGetAPIVersion = 0xAE00
	kvmAPIVersion    = 12
)

// host is where the probes look; tests point it elsewhere.
type host struct {
	kvm        string
	vhostVsock string
	cpuinfo    string
	apiVersion func(*os.File) (int, error)
}

var thisHost = host{
	kvm:        "/dev/kvm",
	vhostVsock: "/dev/vhost-vsock",
	cpuinfo:    "/proc/cpuinfo",
	apiVersion: func(f *os.File) (int, error) { return unix.IoctlRetInt(int(f.Fd()), kvmGetAPIVersion) },
}

// ProbeAccel resolves want to KVM or TCG and says why in words for a person.
//
// Auto is KVM only if /dev/kvm opens, speaks the KVM API and the processor has
// vmx or svm. The last matters: on hosts that are themselves paravirtual guests
// /dev/kvm opens and creates VMs that then hang without an error.
// KVM asked for by name needs no processor flag, whoever asks knows the host; it
// is an error where /dev/kvm cannot be used.
func ProbeAccel(want hypervisor.Accel) (accel hypervisor.Accel, reason string, err error) {
	return thisHost.probeAccel(want)
}

func (h host) probeAccel(want hypervisor.Accel) (hypervisor.Accel, string, error) {
	switch want {
	case hypervisor.TCG:
		return hypervisor.TCG, "configured", nil
	case hypervisor.KVM:
		if err := h.openKVM(); err != nil {
			return "", "", fmt.Errorf("accel %s: %w", hypervisor.KVM, err)
		}
		return hypervisor.KVM, "configured", nil
	case hypervisor.Auto, "":
	default:
		return "", "", fmt.Errorf("accel %q is none of %s, %s, %s", want, hypervisor.Auto, hypervisor.KVM, hypervisor.TCG)
	}

	if err := h.openKVM(); err != nil {
		//nolint:nilerr // no KVM is an answer here, not a failure.
		return hypervisor.TCG, err.Error(), nil
	}
	flag, err := h.virtFlag()
	if err != nil {
		return "", "", fmt.Errorf("probe accel: %w", err)
	}
	if flag == "" {
		return hypervisor.TCG, h.kvm + " opens, but the processor shows neither vmx nor svm, so it may not run a guest; " +
			"set accel to kvm if you know that it does", nil
	}
	return hypervisor.KVM, fmt.Sprintf("%s opens and the processor has %s", h.kvm, flag), nil
}

// openKVM says in words for a person why /dev/kvm cannot be used, if so.
func (h host) openKVM() error {
	f, err := os.OpenFile(h.kvm, os.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: enable virtualization in the firmware and load kvm_intel or kvm_amd", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: run as root or as a member of group kvm", err)
	case err != nil:
		return fmt.Errorf("%w: load kvm_intel or kvm_amd", err)
	}
	// Opened only to ask it.
	defer f.Close()
	v, err := h.apiVersion(f)
	if err != nil {
		return fmt.Errorf("ask %s for its api version: %w", h.kvm, err)
	}
	if v != kvmAPIVersion {
		return fmt.Errorf("%s has api version %d, not %d: it is not KVM as QEMU knows it", h.kvm, v, kvmAPIVersion)
	}
	return nil
}

// virtFlag returns "vmx" or "svm" if the first processor has one, else "".
func (h host) virtFlag() (string, error) {
	flags, err := h.cpuField("flags")
	if err != nil {
		return "", err
	}
	for _, f := range strings.Fields(flags) {
		if f == "vmx" || f == "svm" {
			return f, nil
		}
	}
	return "", nil
}

// tscKHz returns the rate of the time stamp counter, which a guest under
// emulation sees unscaled, or 0 where it cannot be told. BogoMIPS is twice that
// rate on x86, whereas "cpu MHz" follows the processor's present clock: a guest
// told that one while the host idles would have its clock run several times too
// fast for good.
func (h host) tscKHz() int {
	field, err := h.cpuField("bogomips")
	if err != nil {
		return 0
	}
	mips, err := strconv.ParseFloat(field, 64)
	if err != nil || mips < 200 || mips > 40000 { // below 100 MHz or above 20 GHz: not a rate
		return 0
	}
	return int(mips * 1000 / 2)
}

// cpuField returns a field of the first processor, "" if it has none. It reads no
// further: on large machines the whole file takes milliseconds to make.
func (h host) cpuField(name string) (value string, err error) {
	f, err := os.Open(h.cpuinfo)
	if err != nil {
		return "", fmt.Errorf("read processor flags: %w", err)
	}
	// Opened for reading.
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() && lines.Text() != "" {
		key, value, _ := strings.Cut(lines.Text(), ":")
		if strings.TrimSpace(key) == name {
			return strings.TrimSpace(value), nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("read %s: %w", h.cpuinfo, err)
	}
	return "", nil
}

// ProbeVsock says whether the agent channel can be a vhost-vsock device, and if
// not, why, in words for a person.
func ProbeVsock() (ok bool, reason string) { return thisHost.probeVsock() }

func (h host) probeVsock() (bool, string) {
	f, err := os.OpenFile(h.vhostVsock, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err.Error() + ": load module vhost_vsock to have it"
	}
	// Opened only to see that it opens.
	f.Close()
	return true, h.vhostVsock + " opens"
}
