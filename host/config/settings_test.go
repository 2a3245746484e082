package config

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// TestSettingsAreComplete: every field of Config is documented once, and nothing else is.
func TestSettingsAreComplete(t *testing.T) {
	seen := map[string]int{}
	for _, s := range Settings {
		seen[s.Key]++
		if s.Default == "" || s.Meaning == "" {
			t.Errorf("%s: default %q, meaning %q", s.Key, s.Default, s.Meaning)
		}
	}
	fields := reflect.TypeFor[Config]()
	for i := range fields.NumField() {
		key := fields.Field(i).Tag.Get("toml")
		if seen[key] != 1 {
			t.Errorf("setting %s is documented %d times", key, seen[key])
		}
		delete(seen, key)
	}
	for key := range seen {
		t.Errorf("%s is documented and is no setting", key)
	}
}

// TestSettingsDocument: docs/settings.md has the row of each setting, word for word.
func TestSettingsDocument(t *testing.T) {
	page, err := os.ReadFile("../../docs/settings.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range Settings {
		if row := "| `" + s.Key + "` | " + s.Default + " | " + s.Meaning + " |"; !strings.Contains(string(page), row) {
			t.Errorf("docs/settings.md lacks the row\n%s", row)
		}
	}
}

// TestSample: the sample sets nothing as it is, and is valid when its comment signs are
// removed.
func TestSample(t *testing.T) {
	var b strings.Builder
	if err := WriteSample(&b); err != nil {
		t.Fatal(err)
	}
	asIs, err := Load(write(t, b.String()))
	if err != nil {
		t.Fatal(err)
	}
	defaults, err := Load(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if *asIs != *defaults {
		t.Errorf("the sample is %+v, the defaults are %+v", asIs, defaults)
	}
	var active strings.Builder
	for line := range strings.Lines(b.String()) {
		if strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "# ") {
			line = line[1:]
		}
		active.WriteString(line)
	}
	if _, err := Load(write(t, active.String())); err != nil {
		t.Errorf("with its settings made active: %v\n%s", err, active.String())
	}
	if n := strings.Count(active.String(), "\n#"); n == strings.Count(b.String(), "\n#") {
		t.Error("nothing was made active")
	}
}

func TestShow(t *testing.T) {
	path := write(t, "accel = \"tcg\"\nmemory_mib = 512\nkernel_params = \"\"\n")
	all, err := Show(path)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][2]string{
		"accel":             {`"tcg"`, path},
		"memory_mib":        {"512", path},
		"kernel_params":     {`""`, path},
		"templates_max_age": {`"168h0m0s"`, "default"},
		"vcpus":             {"", "default"},
	}
	if len(all) != len(Settings) {
		t.Errorf("%d settings, want %d", len(all), len(Settings))
	}
	for _, e := range all {
		if w, ok := want[e.Key]; ok && (e.Value != w[0] || e.From != w[1]) {
			t.Errorf("%s = %s from %s, want %v", e.Key, e.Value, e.From, w)
		}
	}
	if _, err := Show(write(t, "no = 1\n")); err == nil {
		t.Error("an unknown key was shown")
	}
}
