package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
)

// report holds the results of a run.
type report struct {
	Suite   string    `json:"suite"`
	Machine string    `json:"machine"`
	Husk    string    `json:"husk"`
	Runc    string    `json:"runc"`
	Tests   []verdict `json:"tests"`
	// Missing are tests in expected.txt that the suite does not have.
	Missing []string `json:"missing,omitempty"`
}

func (r *report) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s, %s\n%s\n\n", r.Suite, r.Husk, r.Runc, r.Machine)
	b.WriteString("| test | runc | husk | | reason |\n|---|---|---|---|---|\n")
	for _, v := range r.Tests {
		reason := v.Reason
		if reason == "" && v.Husk.String() != v.Runc.String() {
			reason = join(v.Runc.Trouble, "no reason known")
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", v.Test, v.Runc, v.Husk, v.Verdict, strings.ReplaceAll(reason, "|", `\|`))
	}
	b.WriteString("\nok/not ok; ! where a test complains besides its results.\n")
	return b.String()
}

// finish prints the table and writes the files. It returns an error if husk has failed a test.
func (r *report) finish(markdown, document string) error {
	table := r.table()
	fmt.Println("\n" + table)
	var errs []error
	if markdown != "" {
		errs = append(errs, os.WriteFile(markdown, []byte(table), 0o644))
	}
	if document != "" {
		doc, err := json.MarshalIndent(r, "", "  ")
		if err == nil {
			err = os.WriteFile(document, append(doc, '\n'), 0o644)
		}
		errs = append(errs, err)
	}
	clean, held := 0, 0
	for _, v := range r.Tests {
		if v.Husk.clean() {
			clean++
		}
		if v.HeldToRunc {
			held++
		}
		if v.Verdict != pass {
			errs = append(errs, fmt.Errorf("%s: %s: husk %s, runc %s", v.Test, v.Verdict, v.Husk, v.Runc))
		}
	}
	if len(r.Missing) > 0 {
		errs = append(errs, fmt.Errorf("expected.txt names tests that the suite does not have: %s", strings.Join(r.Missing, ", ")))
	}
	if len(r.Tests) == 0 {
		errs = append(errs, errors.New("no test was run"))
	}
	fmt.Printf("%d tests, %d of them clean with husk, %d held to runc alone, which does less here than in expected.txt\n", len(r.Tests), clean, held)
	return errors.Join(errs...)
}
