package libcontainer

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/linux/sysctl"
)

// newSysctl allows, as runc does, only sysctls of a namespace that the container does not share
// with the caller. Others would change the whole kernel.
func newSysctl(values map[string]string, has func(specs.LinuxNamespaceType) bool) ([]sysctlConfig, error) {
	var out []sysctlConfig
	for key, value := range values {
		file := sysctl.File(key)
		if err := checkSysctl(file, key, has); err != nil {
			return nil, err
		}
		out = append(out, sysctlConfig{File: file, Value: value})
	}
	slices.SortFunc(out, func(a, b sysctlConfig) int { return strings.Compare(a.File, b.File) })
	return out, nil
}

func checkSysctl(file, key string, has func(specs.LinuxNamespaceType) bool) error {
	if file != path.Clean(file) || path.IsAbs(file) || strings.HasPrefix(file, "../") {
		return fmt.Errorf("invalid sysctl %q", key)
	}
	switch ns := sysctl.Namespace(sysctl.Name(key)); {
	case ns == specs.IPCNamespace:
		if !has(specs.IPCNamespace) {
			return fmt.Errorf("sysctl %q is not allowed in the hosts ipc namespace", key)
		}
	case ns == specs.NetworkNamespace:
		if !has(specs.NetworkNamespace) {
			return fmt.Errorf("sysctl %q not allowed in host network namespace", key)
		}
	case file == "kernel/domainname":
		if !has(specs.UTSNamespace) {
			return fmt.Errorf("sysctl %q not allowed in host UTS namespace", key)
		}
	case file == "kernel/hostname":
		return fmt.Errorf("sysctl %q is not allowed as it conflicts with the OCI %q field", key, "hostname")
	default:
		return fmt.Errorf("sysctl %q is not in a separate kernel namespace", key)
	}
	return nil
}

// writeSysctl writes through the caller's /proc, before the stage leaves it, because the
// container's /proc may be forged. In both, the values belong to the namespaces of the writing
// process.
func writeSysctl(values []sysctlConfig) error {
	if len(values) == 0 {
		return nil
	}
	sys, err := openRoot("/proc/sys")
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(sys.fd) }()
	for _, v := range values {
		fd, err := sys.open(v.File, unix.O_WRONLY, unix.RESOLVE_NO_SYMLINKS)
		if err != nil {
			return &os.PathError{Op: "open", Path: "/proc/sys/" + v.File, Err: err}
		}
		_, err = unix.Write(fd, []byte(v.Value))
		_ = unix.Close(fd)
		if err != nil {
			return &os.PathError{Op: "write", Path: "/proc/sys/" + v.File, Err: err}
		}
	}
	return nil
}
