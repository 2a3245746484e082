package main

import (
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/huskvm/husk/host/state"
)

// parseMetrics parses the text format as Prometheus does. The key of a value is its name with
// the label that is not root.
func parseMetrics(t *testing.T, text, root string) map[string]float64 {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	all, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("not the text format: %v\n%s", err, text)
	}
	values := map[string]float64{}
	for name, family := range all {
		if family.GetHelp() == "" || (family.GetType() == dto.MetricType_COUNTER) != strings.HasSuffix(name, "_total") {
			t.Errorf("%s has type %v and help %q", name, family.GetType(), family.GetHelp())
		}
		for _, m := range family.Metric {
			if len(m.Label) != 2 || m.Label[0].GetName() != "root" || m.Label[0].GetValue() != root {
				t.Errorf("labels of %s: %v, want the root %q first", name, m.Label, root)
			}
			values[name+" "+m.Label[1].GetName()+"="+m.Label[1].GetValue()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return values
}

func TestMetrics(t *testing.T) {
	f := runningContainer(t)
	f.stats = `{"cpu":{"usage":{"total":2500000000,"kernel":500000000,"user":2000000000},"throttling":{"throttledTime":250000000}},
		"memory":{"usage":{"limit":18446744073709551615,"usage":4096,"failcnt":3}},"pids":{"current":5,"limit":100}}`
	out, err := f.husk("metrics")
	if err != nil {
		t.Fatal(err)
	}
	got := parseMetrics(t, out, f.root)
	want := map[string]float64{
		"husk_containers status=creating": 0, "husk_containers status=created": 0, "husk_containers status=running": 1,
		"husk_containers status=paused": 0, "husk_containers status=stopped": 0,
		"husk_container_up id=c1":                          1,
		"husk_container_cpu_usage_seconds_total id=c1":     2.5,
		"husk_container_cpu_system_seconds_total id=c1":    0.5,
		"husk_container_cpu_user_seconds_total id=c1":      2,
		"husk_container_cpu_throttled_seconds_total id=c1": 0.25,
		"husk_container_memory_usage_bytes id=c1":          4096,
		"husk_container_memory_failures_total id=c1":       3,
		"husk_container_pids id=c1":                        5,
		"husk_container_pids_limit id=c1":                  100,
	}
	if !maps.Equal(got, want) { // a limit that does not exist has no value
		t.Errorf("metrics are %v\nwant %v\n%s", got, want, out)
	}
}

// TestMetricsOfSilentContainer: a supervisor that is stopped accepts a connection and never
// answers. The others have their values all the same.
func TestMetricsOfSilentContainer(t *testing.T) {
	f := runningContainer(t)
	f.stats = `{"memory":{"usage":{"usage":1,"limit":2}}}`
	silent := *f.data
	silent.ID = "silent"
	dir, err := state.Create(f.root, &silent)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	dir.Unlock()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: dir.FDPath(state.ControlSocket)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	out, err := f.husk("metrics", "--timeout", "1s")
	if err != nil {
		t.Fatal(err)
	}
	got := parseMetrics(t, out, f.root)
	for name, want := range map[string]float64{
		"husk_containers status=running": 2, "husk_container_up id=c1": 1, "husk_container_up id=silent": 0,
		"husk_container_memory_limit_bytes id=c1": 2,
	} {
		if v, there := got[name]; !there || v != want {
			t.Errorf("%s is %v, want %v", name, v, want)
		}
	}
	if strings.Contains(out, `husk_container_pids{root="`+f.root+`",id="silent"}`) {
		t.Errorf("a container that does not answer has values:\n%s", out)
	}
	_, err = f.husk("metrics", "--timeout", "0s")
	wantError(t, err, "invalid timeout 0s: it must be greater than 0")
}

// TestMetricsLabels: the root may be any path.
func TestMetricsLabels(t *testing.T) {
	root := filepath.Join(t.TempDir(), "a \"quoted\"\\path\nof two lines")
	out, err := husk(root, "metrics")
	if err != nil {
		t.Fatal(err)
	}
	if got := parseMetrics(t, out, root); len(got) != 5 {
		t.Errorf("metrics of no container: %v", got)
	}
}

// TestMetricsOutput: the file is replaced atomically, and no other file is left.
func TestMetricsOutput(t *testing.T) {
	f := runningContainer(t)
	f.stats = `{}`
	path := filepath.Join(t.TempDir(), "husk.prom")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	old, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if out, err := f.husk("metrics", "--output", path); err != nil || out != "" {
		t.Fatalf("metrics --output: %q, %v", out, err)
	}
	text, err := os.ReadFile(path)
	if err != nil || parseMetrics(t, string(text), f.root)["husk_container_up id=c1"] != 1 {
		t.Errorf("the file holds %q, %v", text, err)
	}
	before := make([]byte, 10)
	if n, _ := old.Read(before); string(before[:n]) != "old" {
		t.Errorf("whoever had the old file open reads %q", before[:n])
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, %v: node_exporter is not root", info.Mode(), err)
	}
	if err := os.Mkdir(path+".dir", 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := f.husk("metrics", "--output", path+".dir"); err == nil {
		t.Error("a directory was replaced")
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*"))
	hidden, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*"))
	if err != nil || len(left) != 2 || len(hidden) != 0 {
		t.Errorf("the directory holds %v and %v, %v", left, hidden, err)
	}
}

// TestMetricsDocumented: docs/metrics.md names each metric with its type.
func TestMetricsDocumented(t *testing.T) {
	text, err := os.ReadFile("docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if row := "| `" + f.name + "{id=}` | " + f.kind + " | "; !strings.Contains(string(text), row) {
			t.Errorf("docs/metrics.md has no row %q", row)
		}
	}
}
