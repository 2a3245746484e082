package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestUpdateFlags(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{nil, `{}`},
		{[]string{"--memory", "100m"}, `{"memory":{"limit":104857600}}`},
		{[]string{"--memory", "104857600"}, `{"memory":{"limit":104857600}}`},
		{[]string{"--memory", "-1"}, `{"memory":{"limit":-1}}`},
		{
			[]string{"--memory=1g", "--memory-swap", "2GiB", "--memory-reservation", "512k"},
			`{"memory":{"limit":1073741824,"reservation":524288,"swap":2147483648}}`,
		},
		{
			[]string{"--cpu-period", "100000", "--cpu-quota", "50000", "--cpu-share", "512", "--cpu-burst", "1000"},
			`{"cpu":{"shares":512,"quota":50000,"burst":1000,"period":100000}}`,
		},
		{[]string{"--cpu-quota", "-1"}, `{"cpu":{"quota":-1}}`},
		{[]string{"--cpu-idle", "1"}, `{"cpu":{"idle":1}}`},
		{[]string{"--cpu-idle", "0"}, `{"cpu":{"idle":0}}`},
		{[]string{"--pids-limit", "20"}, `{"pids":{"limit":20}}`},
		{[]string{"--pids-limit", "-1"}, `{"pids":{"limit":-1}}`},
		{[]string{"--pids-limit", "0", "--blkio-weight", "0"}, `{}`},
	} {
		f := runningContainer(t)
		out, err := f.husk(slices.Concat([]string{"update"}, tc.args, []string{"c1"})...)
		if err != nil || out != "" {
			t.Errorf("update %v: %q, %v", tc.args, out, err)
		}
		if !slices.Equal(f.updates, []string{tc.want}) {
			t.Errorf("update %v sent %v, want %s", tc.args, f.updates, tc.want)
		}
	}
}

// TestUpdateRefused: an update that is refused changes nothing, not even what could be changed.
func TestUpdateRefused(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, []byte("{bad"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args []string
		text string // beginning of the error
	}{
		{[]string{"--memory", "abc"}, "invalid value for memory: invalid size: 'abc'"},
		{[]string{"--memory-swap", "-2"}, "invalid value for memory-swap: invalid size: '-2'"},
		{[]string{"--cpu-share", "abc"}, `invalid value for cpu-share: strconv.ParseUint: parsing "abc": invalid syntax`},
		{[]string{"--cpu-period", "-1"}, `invalid value for cpu-period: strconv.ParseUint: parsing "-1": invalid syntax`},
		{[]string{"--cpu-quota", "x"}, `invalid value for cpu-quota: strconv.ParseInt: parsing "x": invalid syntax`},
		{[]string{"--pids-limit", "x"}, `invalid value "x" for flag -pids-limit: parse error`},
		{[]string{"--blkio-weight", "x"}, `invalid value "x" for flag -blkio-weight: parse error`},
		{[]string{"--blkio-weight", "70000"}, "invalid value for blkio-weight: 70000 is not between 10 and 1000"},
		{[]string{"--blkio-weight", "500"}, "update is not supported: linux.resources.blockIO"},
		{[]string{"--cpuset-mems", "0"}, "update is not supported: linux.resources.cpu.mems"},
		{[]string{"--cpu-rt-period", "1000"}, "update is not supported: linux.resources.cpu.realtimePeriod"},
		{[]string{"--cpu-rt-runtime", "1000"}, "update is not supported: linux.resources.cpu.realtimeRuntime"},
		{[]string{"--kernel-memory", "1g"}, "update is not supported: linux.resources.memory.kernel"},
		{[]string{"--kernel-memory-tcp", "1g"}, "update is not supported: linux.resources.memory.kernelTCP"},
		{[]string{"--l3-cache-schema", "x"}, "Intel RDT/CAT: l3 cache schema is not enabled"},
		{[]string{"--mem-bw-schema", "x"}, "Intel RDT/MBA: memory bandwidth schema is not enabled"},
		{[]string{"-r", "/nosuch"}, "open /nosuch: no such file or directory"},
		{[]string{"-r", bad}, "read resources: invalid character 'b' looking for beginning of object key string"},
		{[]string{"-r", "/dev/null"}, "read resources: EOF"},
	} {
		f := runningContainer(t)
		// The memory limit alone would be accepted.
		args := slices.Concat([]string{"update", "--memory-reservation", "64m"}, tc.args, []string{"c1"})
		if _, err := f.husk(args...); err == nil || !strings.HasPrefix(err.Error(), tc.text) {
			t.Errorf("%v: error %v, want %q", args, err, tc.text)
		}
		if calls := f.called(); len(calls) > 0 {
			t.Errorf("%v: the supervisor was asked to %v", args, calls)
		}
	}
}

func TestUpdateResources(t *testing.T) {
	const given = `{"memory":{"limit":104857600},"cpu":{"shares":512}}`
	file := filepath.Join(t.TempDir(), "resources.json")
	if err := os.WriteFile(file, []byte(given), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"update", "--resources", "-", "c1"}, // containerd 1.6, CRI-O
		{"update", "--resources=-", "c1"},    // containerd 2
		{"update", "-r", file, "c1"},
		{"update", "--resources=" + file, "--memory", "1g", "--l3-cache-schema=", "c1"}, // podman; other flags are ignored
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		// The writer stays open, because an engine may close it only later.
		if _, err := w.WriteString(given + "\n"); err != nil {
			t.Fatal(err)
		}
		f := runningContainer(t)
		stdin := os.Stdin
		os.Stdin = r
		_, err = f.husk(args...)
		os.Stdin = stdin
		r.Close()
		w.Close()
		if err != nil {
			t.Errorf("%v: %v", args, err)
		}
		if len(f.updates) != 1 || !sameJSON(t, f.updates[0], given) {
			t.Errorf("%v sent %v, want %s", args, f.updates, given)
		}
	}
}
