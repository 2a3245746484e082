//go:build integration

package engines

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// alone, at the end of a case's title, means that no other case may run at the same time.
const alone = " (alone)"

// long, at the end of a title, means that the case repeats something many times.
const long = " (long)"

// testCase is one thing that a user does with an engine: a bash script.
type testCase struct {
	name   string
	script string
	alone  bool
	long   bool
}

// timeout bounds the case: three more minutes for each repetition.
func (c testCase) timeout() time.Duration {
	if c.long {
		return caseTimeout + time.Duration(repeats)*3*time.Minute
	}
	return caseTimeout
}

// readCases reads the cases of a file: each begins with a line "### name".
func readCases(file string) ([]testCase, error) {
	text, err := os.ReadFile(filepath.Join("cases", file))
	if err != nil {
		return nil, err
	}
	var cases []testCase
	for _, part := range strings.Split("\n"+string(text), "\n### ")[1:] {
		title, script, _ := strings.Cut(part, "\n")
		c := testCase{script: script}
		c.name, c.alone = strings.CutSuffix(title, alone)
		c.name, c.long = strings.CutSuffix(c.name, long)
		cases = append(cases, c)
	}
	return cases, nil
}

// exception is a case that a runtime does not pass with an engine.
type exception struct{ engine, runtime, name, reason string }

type exceptions []exception

// readExceptions reads lines "ENGINE RUNTIME CASE: reason". ENGINE may be a pattern such as
// docker*.
func readExceptions() (exceptions, error) {
	text, err := os.ReadFile(filepath.Join("cases", "exceptions.txt"))
	if err != nil {
		return nil, err
	}
	var all exceptions
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, reason, ok := strings.Cut(line, ": ")
		words := strings.SplitN(key, " ", 3)
		if !ok || len(words) != 3 {
			return nil, fmt.Errorf("exceptions.txt: %q is not ENGINE RUNTIME CASE: reason", line)
		}
		all = append(all, exception{engine: words[0], runtime: words[1], name: words[2], reason: reason})
	}
	return all, nil
}

// reason returns why a case does not pass; "" if it has to pass.
func (all exceptions) reason(engine, runtime, name string) string {
	for _, e := range all {
		if ok, _ := path.Match(e.engine, engine); ok && e.runtime == runtime && e.name == name {
			return e.reason
		}
	}
	return ""
}
