package main

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/specconv/seccomp"
)

func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	decode := func(s string) (v any) {
		if err := json.Unmarshal([]byte(s), &v); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		return v
	}
	return reflect.DeepEqual(decode(a), decode(b))
}

func readFeatures(t *testing.T) *features.Features {
	t.Helper()
	// dockerd calls it without --root and before anything is set up.
	out, err := husk(filepath.Join(t.TempDir(), "nosuch"), "features")
	if err != nil {
		t.Fatal(err)
	}
	f := &features.Features{}
	if err := json.Unmarshal([]byte(out), f); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFeatures(t *testing.T) {
	f := readFeatures(t)
	if f.OCIVersionMin != "1.0.0" || f.OCIVersionMax != specs.Version {
		t.Errorf("versions %s to %s", f.OCIVersionMin, f.OCIVersionMax)
	}
	if f.Annotations["org.huskvm.version"] != version || f.Annotations["org.huskvm.commit"] != commit {
		t.Errorf("annotations %v", f.Annotations)
	}
	for name, enabled := range map[string]*bool{
		"cgroup.v1":      f.Linux.Cgroup.V1,
		"cgroup.v2":      f.Linux.Cgroup.V2,
		"cgroup.systemd": f.Linux.Cgroup.Systemd,
	} {
		if enabled == nil || !*enabled {
			t.Errorf("%s is not true", name)
		}
	}
	// A missing value would mean "unknown".
	for name, enabled := range map[string]*bool{
		"apparmor": f.Linux.Apparmor.Enabled,
		"selinux":  f.Linux.Selinux.Enabled,
		"intelRdt": f.Linux.IntelRdt.Enabled,
	} {
		if enabled == nil || *enabled {
			t.Errorf("%s is not false", name)
		}
	}
	if !slices.Contains(f.MountOptions, "rro") {
		t.Error("no rro: Docker would refuse recursively read-only binds")
	}
}

// convert says whether husk would make a container of the changed example.
func convert(t *testing.T, change func(*specs.Spec)) error {
	t.Helper()
	bundle := t.TempDir()
	if err := os.Mkdir(filepath.Join(bundle, "rootfs"), 0o755); err != nil {
		t.Fatal(err)
	}
	spec := specconv.Example()
	change(spec)
	_, err := specconv.Convert(specconv.Env{ID: "c1", Bundle: bundle}, spec)
	return err
}

// TestFeaturesAreTrue compares features with what create does.
func TestFeaturesAreTrue(t *testing.T) {
	f := readFeatures(t)
	if err := convert(t, func(*specs.Spec) {}); err != nil {
		t.Fatal(err)
	}
	for _, ns := range []specs.LinuxNamespaceType{
		specs.CgroupNamespace, specs.IPCNamespace, specs.MountNamespace, specs.NetworkNamespace, specs.PIDNamespace,
		specs.UTSNamespace, specs.UserNamespace, specs.TimeNamespace,
	} {
		err := convert(t, func(s *specs.Spec) {
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == ns })
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: ns})
			switch ns {
			case specs.UserNamespace:
				s.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 65536}}
				s.Linux.GIDMappings = s.Linux.UIDMappings
			case specs.TimeNamespace:
				s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1}}
			}
		})
		if told := slices.Contains(f.Linux.Namespaces, string(ns)); told != (err == nil) {
			t.Errorf("features have the %s namespace: %t; a create says %v", ns, told, err)
		}
	}
	hook := []specs.Hook{{Path: "/bin/true"}}
	for name, h := range map[string]specs.Hooks{
		"prestart":        {Prestart: hook},
		"createRuntime":   {CreateRuntime: hook},
		"createContainer": {CreateContainer: hook},
		"startContainer":  {StartContainer: hook},
		"poststart":       {Poststart: hook},
		"poststop":        {Poststop: hook},
	} {
		err := convert(t, func(s *specs.Spec) { s.Hooks = &h })
		if told := slices.Contains(f.Hooks, name); told != (err == nil) {
			t.Errorf("features have the hook %s: %t; a create says %v", name, told, err)
		}
	}
	for _, name := range append(f.Linux.Capabilities, "CAP_NOSUCH") {
		err := convert(t, func(s *specs.Spec) { s.Process.Capabilities.Bounding = []string{name} })
		if (name == "CAP_NOSUCH") != (err != nil) {
			t.Errorf("capability %s: %v", name, err)
		}
	}
	if n := len(f.Linux.Capabilities); n < 41 {
		t.Errorf("%d capabilities, Linux 5.9 and later have 41", n)
	}
}

// TestMountOptions compares the list with the cases in the source of the agent's parser,
// because host code does not import guest code.
func TestMountOptions(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "libcontainer/mountoptions.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	// Ids are mapped on the host.
	want := []string{"tmpcopyup", "idmap", "ridmap"}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ValueSpec:
			if n.Names[0].Name == "mountFlags" {
				want = append(want, optionsOfTable(t, n)...)
			}
			return false
		case *ast.FuncDecl:
			if strings.HasPrefix(n.Name.Name, "lookup") {
				want = append(want, optionsOf(t, n)...)
			}
			return false
		}
		return true
	})
	slices.Sort(want)
	if got := mountOptions(); !slices.Equal(got, want) {
		t.Errorf("features have\n%v\nthe parser\n%v", got, want)
	}
}

// optionsOfTable returns the options in the table and, for those with an attribute of the mount
// itself (three values), the recursive form.
func optionsOfTable(t *testing.T, table *ast.ValueSpec) []string {
	t.Helper()
	var options []string
	for _, e := range table.Values[0].(*ast.CompositeLit).Elts {
		row := e.(*ast.CompositeLit).Elts
		name, err := strconv.Unquote(row[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		options = append(options, name)
		if len(row[1].(*ast.CompositeLit).Elts) == 3 {
			options = append(options, "r"+name)
		}
	}
	return options
}

// optionsOf returns the strings in a lookup function and, for those with attributes of the
// mount itself, the recursive form.
func optionsOf(t *testing.T, fn *ast.FuncDecl) []string {
	t.Helper()
	var options []string
	ast.Inspect(fn, func(n ast.Node) bool {
		clause, ok := n.(*ast.CaseClause)
		if !ok {
			return true
		}
		ofMount := false
		for _, stmt := range clause.Body {
			ast.Inspect(stmt, func(n ast.Node) bool {
				id, ok := n.(*ast.Ident)
				ofMount = ofMount || ok && strings.HasPrefix(id.Name, "MOUNT_ATTR_")
				return true
			})
		}
		for _, e := range clause.List {
			lit, ok := e.(*ast.BasicLit)
			if !ok {
				t.Fatalf("%s: a case that is not a string", fn.Name.Name)
			}
			o, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Fatal(err)
			}
			options = append(options, o)
			if ofMount {
				options = append(options, "r"+o)
			}
		}
		return false
	})
	return options
}

// TestSeccompFeatures: everything that features lists compiles.
func TestSeccompFeatures(t *testing.T) {
	f := supported().Linux.Seccomp
	if f.Enabled == nil || !*f.Enabled || len(f.Actions) == 0 || len(f.Operators) == 0 || len(f.Archs) == 0 || len(f.KnownFlags) == 0 {
		t.Fatalf("%+v", f)
	}
	for _, action := range f.Actions {
		for _, op := range f.Operators {
			s := &specs.LinuxSeccomp{
				DefaultAction: specs.LinuxSeccompAction(action),
				Syscalls: []specs.LinuxSyscall{{
					Names: []string{"read"}, Action: specs.LinuxSeccompAction(action),
					Args: []specs.LinuxSeccompArg{{Op: specs.LinuxSeccompOperator(op)}},
				}},
			}
			for _, a := range f.Archs {
				s.Architectures = append(s.Architectures, specs.Arch(a))
			}
			for _, flag := range f.KnownFlags {
				s.Flags = append(s.Flags, specs.LinuxSeccompFlag(flag))
			}
			if _, err := seccomp.Compile(s); err != nil {
				t.Error(err)
			}
		}
	}
}
