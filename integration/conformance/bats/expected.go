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
	wantFail = "fail" // it is run, and must not pass
	leftOut  = "out"  // it is not run
)

// reasons why a test does not pass, each the beginning of a text.
var reasons = []string{
	"vm:",      // a virtual machine cannot give it
	"husk:",    // husk decides otherwise, on purpose
	"open:",    // not done yet
	"machine:", // of the machine where the list was made: another may do better
	"suite:",   // the test is at fault
}

type expectation struct{ want, reason string }

type expectations map[test]expectation

// readExpectations reads a line with a file's name, and for each of its tests one
// with what is expected and its name. A reason stands below the test it is for.
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

// add takes in one line; current is the test the lines before were about.
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

// without returns what is expected of tests that are not there.
func (all expectations) without(tests []test) []test {
	var missing []test
	for t := range all {
		if !slices.Contains(tests, t) {
			missing = append(missing, t)
		}
	}
	return missing
}

// verdict is what has become of one test.
type verdict struct {
	test       test
	expected   expectation
	known      bool // to expected.txt
	runc, husk outcome
	wrong      string // empty if all is well
	note       string
}

// judge holds husk to what is expected of it, and where that does not apply (an
// unknown test, another machine) to what runc has just done.
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
