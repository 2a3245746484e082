package specconv

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const conformanceDoc = "../../docs/spec-conformance.md"

// specFields lists the JSON paths of all fields of a type, as the document writes them:
// "mounts[].source", "linux.resources.rdma{}.hcaHandles". Of fields for other platforms it
// lists only the topmost.
func specFields(t reflect.Type, prefix string) []string {
	switch t.Kind() {
	case reflect.Pointer:
		return specFields(t.Elem(), prefix)
	case reflect.Slice:
		return specFields(t.Elem(), prefix+"[]")
	case reflect.Map:
		return specFields(t.Elem(), prefix+"{}")
	case reflect.Struct:
	default:
		return nil
	}
	var all []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" { // an embedded struct
			all = append(all, specFields(f.Type, prefix)...)
			continue
		}
		path := strings.TrimPrefix(prefix+"."+name, ".")
		all = append(all, path)
		if platforms := f.Tag.Get("platform"); platforms == "" || slices.Contains(strings.Split(platforms, ","), "linux") {
			all = append(all, specFields(f.Type, path)...)
		}
	}
	return all
}

// TestConformanceDocument: each field of the OCI spec has exactly one row in the document, each
// row is about a field, and each test of this package that a row names exists. With a new
// version of the spec the test fails until its new fields are decided on.
func TestConformanceDocument(t *testing.T) {
	b, err := os.ReadFile(conformanceDoc)
	if err != nil {
		t.Fatal(err)
	}
	doc, _, found := strings.Cut(string(b), "\n## Mount options")
	if !found {
		t.Fatal("the document has no section on mount options after the fields")
	}
	row := regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (honoured|host|dropped|refused|ignored) \\| (.+) \\| (.+) \\|$")
	rows := map[string]int{}
	for _, m := range row.FindAllStringSubmatch(doc, -1) {
		rows[m[1]]++
	}
	fields := specFields(reflect.TypeFor[specs.Spec](), "")
	if len(fields) < 200 {
		t.Fatalf("the walk over the spec found %d fields only", len(fields))
	}
	for _, field := range fields {
		if rows[field] != 1 {
			t.Errorf("%s: %d rows, want 1", field, rows[field])
		}
		delete(rows, field)
	}
	for field := range rows {
		t.Errorf("%s: a row, but no such field in the spec", field)
	}

	for _, m := range regexp.MustCompile(`(specconv|libcontainer|integration)\.((?:Test|Fuzz)\w+)`).FindAllStringSubmatch(string(b), -1) {
		if !testExists(t, m[1], m[2]) {
			t.Errorf("the document names %s, which does not exist", m[0])
		}
	}
}

func testExists(t *testing.T, room, name string) bool {
	t.Helper()
	dir := map[string]string{"specconv": ".", "libcontainer": "../../libcontainer", "integration": "../../integration"}[room]
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "\nfunc "+name+"(") {
			return true
		}
	}
	return false
}
