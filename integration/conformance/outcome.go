package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// outcome is what one test printed about one runtime.
type outcome struct {
	OK    int `json:"ok"`
	NotOK int `json:"notOK"`
	// Trouble is what a test reports besides its results: an error that belongs to no result,
	// missing results, its exit status. Several tests can fail only in this way.
	Trouble string  `json:"trouble,omitempty"`
	Seconds float64 `json:"seconds,omitempty"`
	Tries   int     `json:"tries,omitempty"`
}

// String returns the numbers of "ok" and "not ok" results, with ! if there is trouble, as in
// expected.txt.
func (o outcome) String() string {
	text := fmt.Sprintf("%d/%d", o.OK, o.NotOK)
	if o.Trouble != "" {
		text += "!"
	}
	return text
}

// parseOutcome parses what String returns.
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

// atLeast says whether o is as good as p. Trouble counts first: tests that expect create to
// fail print no results if it does, and hundreds and then trouble if it does not. With trouble
// on both sides results that one side did not reach count as "not ok", so only the "ok" results
// are compared.
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

// parse reads TAP as the suite prints it: results, each maybe followed by a diagnostic; errors
// also in a diagnostic without a result; a plan at the end. Some tests print two such
// documents.
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

// errorIn returns the first line of the error in a diagnostic.
func errorIn(diagnostic []byte) string {
	var d struct {
		Error string `json:"error"`
	}
	// Other diagnostics have no error or are no objects.
	_ = json.Unmarshal(diagnostic, &d)
	first, _, _ := strings.Cut(strings.TrimSpace(d.Error), "\n")
	return first
}
