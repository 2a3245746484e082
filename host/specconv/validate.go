package specconv

import (
	"errors"
	"path/filepath"
	"reflect"
	"regexp"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// version1 matches semantic versions 1.x, which may add fields to the spec and remove none.
var version1 = regexp.MustCompile(`^1\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)

// maxHostname is the kernel's __NEW_UTS_LEN.
const maxHostname = 64

var propagations = map[string]bool{
	"": true, "private": true, "rprivate": true, "slave": true, "rslave": true,
	"shared": true, "rshared": true, "unbindable": true, "runbindable": true,
}

// Validate checks everything in a spec that can be checked without the host's files: required
// fields, ranges, names, and what husk does not support. An error is one line that names the
// field.
func Validate(spec *specs.Spec) error {
	if spec == nil {
		return errors.New("config.json: the spec must not be empty")
	}
	for _, check := range []func(*specs.Spec) error{
		validateVersion,
		func(s *specs.Spec) error { return validateProcess(s.Process) },
		validateRoot,
		func(s *specs.Spec) error { return checkNUL(reflect.ValueOf(s), "") },
		validateNamespaces,
		validateNames,
		validateSysctls,
		validateMounts,
		validateHooks,
		validateLinux,
		validateDevices,
		func(s *specs.Spec) error { return validateResources(s.Linux.Resources) },
		validateAnnotations,
	} {
		if err := check(spec); err != nil {
			return err
		}
	}
	return nil
}

func validateVersion(spec *specs.Spec) error {
	switch {
	case spec.Version == "":
		return fieldErrorf("ociVersion", "must not be empty")
	case !version1.MatchString(spec.Version):
		return fieldErrorf("ociVersion", "%s is not a version 1.x.y of the OCI runtime specification", quote(spec.Version))
	}
	return nil
}

func validateRoot(spec *specs.Spec) error {
	switch {
	case spec.Root == nil:
		return errors.New("root must be specified")
	case spec.Root.Path == "":
		return fieldErrorf("root.path", "must not be empty")
	}
	return nil
}

func validateNames(spec *specs.Spec) error {
	uts := hasNamespace(spec.Linux, specs.UTSNamespace)
	if spec.Hostname != "" && !uts {
		return fieldErrorf("hostname", "unable to set hostname without a private UTS namespace")
	}
	if spec.Domainname != "" && !uts {
		return fieldErrorf("domainname", "unable to set domainname without a private UTS namespace")
	}
	if len(spec.Hostname) > maxHostname {
		return fieldErrorf("hostname", "%s is longer than %d bytes", quote(spec.Hostname), maxHostname)
	}
	if len(spec.Domainname) > maxHostname {
		return fieldErrorf("domainname", "%s is longer than %d bytes", quote(spec.Domainname), maxHostname)
	}
	return nil
}

// validateLinux checks what no other file of this package does.
func validateLinux(spec *specs.Spec) error {
	l := spec.Linux
	if !propagations[l.RootfsPropagation] {
		return fieldErrorf("linux.rootfsPropagation", "rootfsPropagation=%s is not supported", quote(l.RootfsPropagation))
	}
	for _, list := range []struct {
		field string
		paths []string
	}{{"linux.maskedPaths", l.MaskedPaths}, {"linux.readonlyPaths", l.ReadonlyPaths}} {
		for i, p := range list.paths {
			if !filepath.IsAbs(p) {
				return fieldErrorf(index(list.field, i), "%s is not an absolute path", quote(p))
			}
		}
	}
	if err := validatePersonality(l.Personality); err != nil {
		return err
	}
	if err := validateMemoryPolicy(l.MemoryPolicy); err != nil {
		return err
	}
	if err := validateNetDevices(l); err != nil {
		return err
	}
	switch {
	case l.IntelRdt != nil:
		return fieldErrorf("linux.intelRdt", "not supported: cache and memory bandwidth of the host are given to tasks of the host, "+
			"of which the container has none: put the cgroup of its virtual machine into a resctrl group")
	case spec.VM != nil:
		return fieldErrorf("vm", "not supported: the virtual machine is described by husk's settings file and annotations")
	}
	return nil
}

func validateHooks(spec *specs.Spec) error {
	h := spec.Hooks
	if h == nil {
		return nil
	}
	for _, kind := range []struct {
		field string
		hooks []specs.Hook
	}{
		{"hooks.prestart", h.Prestart}, //nolint:staticcheck // deprecated, and what Docker before 28 sends
		{"hooks.createRuntime", h.CreateRuntime},
		{"hooks.createContainer", h.CreateContainer},
		{"hooks.startContainer", h.StartContainer},
		{"hooks.poststart", h.Poststart},
		{"hooks.poststop", h.Poststop},
	} {
		for i, hook := range kind.hooks {
			field := index(kind.field, i)
			if !filepath.IsAbs(hook.Path) {
				return fieldErrorf(field+".path", "%s is not an absolute path", quote(hook.Path))
			}
			if hook.Timeout != nil && *hook.Timeout <= 0 {
				return fieldErrorf(field+".timeout", "%d is not a positive number of seconds", *hook.Timeout)
			}
		}
	}
	return nil
}
