package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestExpectedFile(t *testing.T) {
	all, err := readExpectations("expected.txt")
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 58 {
		t.Errorf("expected.txt has %d tests, the pinned suite 58", len(all))
	}
}

// TestDocument: the document gives the reason for every test that does not pass with husk.
func TestDocument(t *testing.T) {
	all, err := readExpectations("expected.txt")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../docs/spec-conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for test, e := range all {
		if e.husk.clean() {
			continue
		}
		rows++
		if row := fmt.Sprintf("| %s | %s | %s | %s |\n", test, e.husk, e.runc, e.reason); !strings.Contains(string(text), row) {
			t.Errorf("docs/spec-conformance.md has no row %s", row)
		}
	}
	if clean := fmt.Sprintf("%d of the %d tests pass clean", len(all)-rows, len(all)); !strings.Contains(string(text), clean) {
		t.Errorf("docs/spec-conformance.md does not say that %s", clean)
	}
}

func TestExpectationNeedsReason(t *testing.T) {
	for line, wrong := range map[string]string{
		"a 3/0 3/0":                   "",
		"a 3/1 3/1 suite: a race":     "",
		"a 2/1 3/0 vm: no host inode": "",
		"a 3/1 3/1":                   "does not pass",
		"a 0/0! 0/0!":                 "does not pass",
		"a 4/0 3/0":                   "differ",
		"a 2/1 3/0 we are slow":       "less than runc",
		"a 3/0":                       "is not TEST HUSK RUNC",
		"a b 3/0":                     "is no outcome",
	} {
		_, _, err := parseExpectation(line)
		switch {
		case wrong == "" && err != nil:
			t.Errorf("%q: %v", line, err)
		case wrong != "" && (err == nil || !strings.Contains(err.Error(), wrong)):
			t.Errorf("%q: %v, want %q", line, err, wrong)
		}
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct{ name, line, runc, husk, want, reason string }{
		{"as expected", "a 3/0 3/0", "3/0", "3/0", pass, ""},
		{"less than expected", "a 3/0 2/1 x", "2/1", "2/1", "FAIL: less than 3/0", "x"},
		{"less than runc, though as expected", "a 2/1 2/1 x", "3/0", "2/1", "FAIL: less than runc", "x"},
		{"a virtual machine may", "a 2/1 3/0 vm: x", "3/0", "2/1", pass, "vm: x"},
		{"not even what a virtual machine can", "a 2/1 3/0 vm: x", "3/0", "1/2", "FAIL: less than 2/1", "vm: x"},
		{"another machine", "a 3/0 3/0", "0/1", "0/1", pass, "held to runc"},
		{"less than runc on another machine", "a 3/0 3/0", "1/2", "0/3", "FAIL: less than runc", ""},
		{"unknown", "", "3/0", "3/0", pass, "not in expected.txt"},
		{"unknown and less", "", "3/0", "2/1", "FAIL: less than runc", ""},
		{"trouble", "a 3/0 3/0", "3/0", "3/0!", "FAIL: less than runc", "husk: expected"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var e expectation
			if c.line != "" {
				var err error
				if _, e, err = parseExpectation(c.line); err != nil {
					t.Fatal(err)
				}
			}
			runc, err := parseOutcome(c.runc)
			if err != nil {
				t.Fatal(err)
			}
			husk, err := parseOutcome(c.husk)
			if err != nil {
				t.Fatal(err)
			}
			v := judge("a", e, c.line != "", runc, husk)
			if v.Verdict != c.want || !strings.Contains(v.Reason, c.reason) {
				t.Errorf("%s: %s (%s), want %s (%s)", c.name, v.Verdict, v.Reason, c.want, c.reason)
			}
		})
	}
}
