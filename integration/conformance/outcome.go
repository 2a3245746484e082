package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// outcome is what one test said about one runtime.
type outcome struct {
	OK    int `json:"ok"`
	NotOK int `json:"notOK"`
	// Trouble is what a test complains of besides its results: an error that
	// belongs to none of them, results that are missing, its exit status. Several
	// tests have no other way to fail.
	Trouble string  `json:"trouble,omitempty"`
	Seconds float64 `json:"seconds,omitempty"`
	Tries   int     `json:"tries,omitempty"`
}

// String is ok/not ok, with ! where there is trouble, as in expected.txt.
func (o outcome) String() string {
	text := fmt.Sprintf("%d/%d", o.OK, o.NotOK)
	if o.Trouble != "" {
		text += "!"
	}
	return text
}

// parseOutcome reads what String writes.
func parseOutcome(text string) (outcome, error) {
	var o outcome
	counts, trouble := strings.CutSuffix(text, "!")
	if trouble {
		o.Trouble = "expected"
	}
	ok, notOK, found := strings.Cut(counts, "/")
	var err error
	if o.OK, err = strconv.Atoi(ok); err == nil {
		o.NotOK, err = strconv.Atoi(notOK)
	}
	if err != nil || !found || o.OK < 0 || o.NotOK < 0 {
		return outcome{}, fmt.Errorf("%q is no outcome, such as 3/0 or 0/0!: ok, not ok, ! for trouble", text)
	}
	return o, nil
}

// atLeast reports whether o is as good as p. Trouble comes first: the tests that
// want a create to fail print no results where it does, and hundreds, then
// trouble, where it does not. With trouble on both sides, what one of them did not
// get to counts as not ok, so that the oks alone decide.
func (o outcome) atLeast(p outcome) bool {
	switch {
	case (o.Trouble == "") != (p.Trouble == ""):
		return o.Trouble == ""
	case o.Trouble != "":
		return o.OK >= p.OK
	}
	return o.OK >= p.OK && o.NotOK <= p.NotOK
}

func (o outcome) clean() bool { return o.NotOK == 0 && o.Trouble == "" }

// parse reads TAP as the suite prints it: results, each with a diagnostic below
// it perhaps; errors also in a diagnostic below nothing; a plan at the end. Some
// tests print two such documents.
func parse(text []byte) outcome {
	var o outcome
	plan, planned := 0, false
	belongs := false // the next diagnostic belongs to a result
	var diagnostic *bytes.Buffer
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, len(text)+1)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case line == "  ---":
			diagnostic = &bytes.Buffer{}
		case line == "  ..." && diagnostic != nil:
			if said := errorIn(diagnostic.Bytes()); said != "" && !belongs {
				o.Trouble = said
			}
			diagnostic, belongs = nil, false
		case diagnostic != nil:
			diagnostic.WriteString(line + "\n")
		case line == "ok" || strings.HasPrefix(line, "ok "):
			o.OK++
			belongs = true
		case line == "not ok" || strings.HasPrefix(line, "not ok "):
			o.NotOK++
			belongs = true
		case strings.HasPrefix(line, "1.."):
			if n, err := strconv.Atoi(strings.TrimPrefix(line, "1..")); err == nil {
				plan, planned = plan+n, true
			}
		}
	}
	if seen := o.OK + o.NotOK; planned && seen != plan && o.Trouble == "" {
		o.Trouble = fmt.Sprintf("%d results where %d were planned", seen, plan)
	}
	return o
}

// errorIn returns the first line of a diagnostic's error.
func errorIn(diagnostic []byte) string {
	var d struct {
		Error string `json:"error"`
	}
	// Other diagnostics have no error, or are no objects.
	_ = json.Unmarshal(diagnostic, &d)
	first, _, _ := strings.Cut(strings.TrimSpace(d.Error), "\n")
	return first
}
