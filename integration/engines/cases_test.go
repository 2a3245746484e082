//go:build integration

package engines

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// alone marks a case that no other may run beside, at the end of its title.
const alone = " (alone)"

// testCase is one thing a user does with an engine: a bash script.
type testCase struct {
	name   string
	script string
	alone  bool
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
		cases = append(cases, c)
	}
	return cases, nil
}

// exceptions are the cases that a runtime does not pass, with the reason:
// "ENGINE RUNTIME CASE: reason" a line.
func readExceptions() (map[string]string, error) {
	text, err := os.ReadFile(filepath.Join("cases", "exceptions.txt"))
	if err != nil {
		return nil, err
	}
	exceptions := map[string]string{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, reason, ok := strings.Cut(line, ": ")
		if !ok {
			return nil, fmt.Errorf("exceptions.txt: %q has no reason", line)
		}
		exceptions[key] = reason
	}
	return exceptions, nil
}
