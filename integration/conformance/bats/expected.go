package main

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"
)

// What expected.txt can say of a test.
const (
	wantPass = "pass"
	wantFail = "fail" // the test runs and must not pass
	leftOut  = "out"  // the test does not run
)

// reasons are the beginnings of texts that say why a test does not pass.
var reasons = []string{
	"vm:",      // a virtual machine cannot do it
	"husk:",    // husk does otherwise on purpose
	"open:",    // not done yet
	"machine:", // depends on the machine on which the list was made
	"suite:",   // the test is wrong
}

type expectation struct{ want, reason string }

type expectations map[test]expectation

// readExpectations reads lines with a file's name, each followed by lines for its tests: what
// is expected, and the test's name. The reason stands below its test.
func readExpectations(path string) (expectations, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all := expectations{}
	var current test
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		if err := all.add(&current, lines.Text()); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	for t, e := range all {
		if (e.reason == "") != (e.want == wantPass) {
			return nil, fmt.Errorf("%s: %s: a test that is expected to pass has no reason, any other one has", path, t)
		}
	}
	return all, nil
}

// add adds one line. current is the test that the lines before were about.
func (all expectations) add(current *test, line string) error {
	text := strings.TrimSpace(line)
	word, rest, _ := strings.Cut(text, " ")
	switch {
	case text == "" || strings.HasPrefix(text, "#"):
		return nil
	case strings.HasSuffix(word, ".bats") && rest == "":
		*current = test{file: word}
		return nil
	case slices.Contains(reasons, word):
		e, there := all[*current]
		if !there || e.reason != "" || rest == "" {
			return fmt.Errorf("a reason for what? %q", text)
		}
		e.reason = text
		all[*current] = e
		return nil
	case slices.Contains([]string{wantPass, wantFail, leftOut}, word) && current.file != "" && rest != "":
		*current = test{current.file, strings.TrimSpace(rest)}
		if _, again := all[*current]; again {
			return fmt.Errorf("%s again", current)
		}
		all[*current] = expectation{want: word}
		return nil
	}
	return fmt.Errorf("%q is neither FILE.bats, nor pass, fail or out with a test's name, nor a reason", text)
}

// without returns the expected tests that do not exist.
func (all expectations) without(tests []test) []test {
	var missing []test
	for t := range all {
		if !slices.Contains(tests, t) {
			missing = append(missing, t)
		}
	}
	return missing
}

// verdict is the result of one test.
type verdict struct {
	test       test
	expected   expectation
	known      bool // expected.txt has the test
	runc, husk outcome
	wrong      string // empty: the result is as expected
	note       string
}

// judge compares husk's result with what is expected, and if that does not apply (an unknown
// test, another machine) with runc's result in this run.
func (v *verdict) judge() {
	v.note = v.expected.reason
	switch {
	case v.husk.is == "" || v.expected.want == leftOut:
	case v.husk.is == skipped:
		v.note = "skipped: " + v.husk.why
		if v.runc.is != "" && v.runc.is != skipped {
			v.wrong = "skipped, with runc it is not"
		}
	case !v.known:
		v.note = "not in expected.txt: held to runc"
		if v.husk.is != passed && v.runc.is == passed {
			v.wrong = "less than runc"
		}
	case v.expected.want == wantFail && v.husk.is == passed && !strings.HasPrefix(v.note, "machine:"):
		v.wrong = "passes, though expected.txt says it does not"
	case v.expected.want == wantPass && v.husk.is != passed:
		if v.runc.is == failed || v.runc.is == timedOut {
			v.note = "runc fails as well here"
			return
		}
		v.wrong = "does not pass"
	}
}
