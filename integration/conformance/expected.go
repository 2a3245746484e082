package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
)

// expectation is a line of expected.txt.
type expectation struct {
	husk, runc outcome
	reason     string
}

type expectations map[string]expectation

// virtual begins a reason why a virtual machine may do less than runc.
const virtual = "vm:"

func readExpectations(path string) (expectations, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all := expectations{}
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		test, e, err := parseExpectation(line)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		if _, again := all[test]; again {
			return nil, fmt.Errorf("%s:%d: %s again", path, n, test)
		}
		all[test] = e
	}
	return all, lines.Err()
}

// parseExpectation parses a line: test, husk's outcome, runc's outcome, and a reason. Without a
// reason both outcomes must be clean and equal.
func parseExpectation(line string) (string, expectation, error) {
	fields := strings.Fields(line)
	if len(fields) < 3 {
		return "", expectation{}, fmt.Errorf("%q is not TEST HUSK RUNC [REASON]", line)
	}
	var e expectation
	var err error
	if e.husk, err = parseOutcome(fields[1]); err != nil {
		return "", e, err
	}
	if e.runc, err = parseOutcome(fields[2]); err != nil {
		return "", e, err
	}
	e.reason = strings.Join(fields[3:], " ")
	switch {
	case e.reason == "" && !e.husk.clean():
		return "", e, fmt.Errorf("%s: husk does not pass, and no reason is given", fields[0])
	case e.reason == "" && fields[1] != fields[2]:
		return "", e, fmt.Errorf("%s: husk and runc differ, and no reason is given", fields[0])
	case !e.husk.atLeast(e.runc) && !strings.HasPrefix(e.reason, virtual):
		return "", e, fmt.Errorf("%s: husk does less than runc, and the reason does not begin with %q", fields[0], virtual)
	}
	return fields[0], e, nil
}

// verdict is the result of one test.
type verdict struct {
	Test     string  `json:"test"`
	Runc     outcome `json:"runc"`
	Husk     outcome `json:"husk"`
	Expected string  `json:"expected,omitempty"`
	Verdict  string  `json:"verdict"` // "pass", or why it is not
	Reason   string  `json:"reason,omitempty"`
	// HeldToRunc: on this machine even runc does not give what expected.txt says, so husk was
	// compared with runc only.
	HeldToRunc bool `json:"heldToRunc,omitempty"`
}

const pass = "pass"

// judge compares husk's outcome with what is expected and with runc's. If runc's own outcome is
// worse than its line, this is another machine than the list was made on (with cgroup v2, for
// example), and only runc is the measure.
func judge(test string, e expectation, known bool, runc, husk outcome) verdict {
	v := verdict{Test: test, Runc: runc, Husk: husk, Verdict: pass, Reason: e.reason}
	if known {
		v.Expected = e.husk.String()
	}
	excused := strings.HasPrefix(e.reason, virtual)
	switch {
	case !husk.atLeast(runc) && !excused:
		v.Verdict = "FAIL: less than runc"
	case known && !husk.atLeast(e.husk) && runc.atLeast(e.runc):
		v.Verdict = "FAIL: less than " + e.husk.String()
	case known && !husk.atLeast(e.husk):
		v.HeldToRunc = true
		v.Reason = join(v.Reason, fmt.Sprintf("held to runc, which gives less here than its usual %s", e.runc))
	case !known:
		v.Reason = "not in expected.txt: held to runc"
	}
	if husk.Trouble != "" {
		v.Reason = join(v.Reason, "husk: "+husk.Trouble)
	}
	return v
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}
