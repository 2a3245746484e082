package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestExpectedFile(t *testing.T) {
	all, err := readExpectations("expected.txt")
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 345 {
		t.Errorf("expected.txt has %d tests, the pinned suite 345", len(all))
	}
}

func TestReadExpectations(t *testing.T) {
	for text, wrong := range map[string]string{
		"a.bats\n  pass one two\n  fail three\n       vm: no descriptor\n": "",
		"# nothing\n":                        "",
		"a.bats\npass one\nvm: x\n":          "has no reason",
		"a.bats\nfail one\n":                 "any other one has",
		"a.bats\nout one\n":                  "any other one has",
		"a.bats\nfail one\nvm: x\nvm: y\n":   "a reason for what",
		"vm: x\n":                            "a reason for what",
		"a.bats\npass one\npass one\n":       "again",
		"pass one\n":                         "is neither",
		"a.bats\npass\n":                     "is neither",
		"a.bats\nskip one\n":                 "is neither",
		"a.bats\nfail one\nwe are slow\n":    "is neither",
		"a.bats\nfail one\nvm:\n":            "a reason for what",
		"a.bats\nb.bats\nout one\nopen: x":   "",
		"a.bats\nb.bats c\nout one\nvm: x\n": "is neither",
	} {
		path := filepath.Join(t.TempDir(), "expected.txt")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := readExpectations(path)
		switch {
		case wrong == "" && err != nil:
			t.Errorf("%q: %v", text, err)
		case wrong != "" && (err == nil || !strings.Contains(err.Error(), wrong)):
			t.Errorf("%q: %v, want %q", text, err, wrong)
		}
	}
}

func TestJudge(t *testing.T) {
	pass := expectation{want: wantPass}
	fail := expectation{wantFail, "vm: x"}
	machine := expectation{wantFail, "machine: x"}
	for _, c := range []struct {
		name       string
		expected   expectation
		known      bool
		runc, husk string
		wrong      string
	}{
		{"as expected", pass, true, passed, passed, ""},
		{"broken", pass, true, passed, failed, "does not pass"},
		{"broken, runc not asked", pass, true, "", failed, "does not pass"},
		{"hangs", pass, true, passed, timedOut, "does not pass"},
		{"another machine", pass, true, failed, failed, ""},
		{"not on this machine", pass, true, skipped, skipped, ""},
		{"skipped because of husk", pass, true, passed, skipped, "skipped"},
		{"does not pass, and need not", fail, true, passed, failed, ""},
		{"suddenly passes", fail, true, passed, passed, "passes"},
		{"a better machine", machine, true, passed, passed, ""},
		{"left out", expectation{leftOut, "vm: x"}, true, "", "", ""},
		{"left out and run all the same", expectation{leftOut, "vm: x"}, true, passed, failed, ""},
		{"unknown", expectation{}, false, passed, passed, ""},
		{"unknown and less", expectation{}, false, passed, failed, "less than runc"},
		{"unknown, both fail", expectation{}, false, failed, failed, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := verdict{expected: c.expected, known: c.known, runc: outcome{is: c.runc}, husk: outcome{is: c.husk}}
			v.judge()
			if (c.wrong == "") != (v.wrong == "") || !strings.Contains(v.wrong, c.wrong) {
				t.Errorf("%s: %q, want %q", c.name, v.wrong, c.wrong)
			}
		})
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct{ tap, is, why string }{
		{"1..1\nok 1 state (kill + delete)\n", passed, ""},
		{"1..1\nok 1 a # skip test requires cgroups_v2\n", skipped, "test requires cgroups_v2"},
		{"1..1\nnot ok 1 a\n# (in test file a.bats, line 3)\n", failed, ""},
		{"1..0\n", "", ""},
		{"bats: no such file\n", "", ""},
	} {
		t.Run(c.tap, func(t *testing.T) {
			got, err := parse(c.tap)
			if (err != nil) != (c.is == "") || got.is != c.is || got.why != c.why || got.took != time.Duration(0) {
				t.Errorf("%q: %+v, %v", c.tap, got, err)
			}
		})
	}
}
