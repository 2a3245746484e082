package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// report holds the results of a run.
type report struct {
	suite    string
	pinned   bool
	verdicts []verdict
	missing  []test // in expected.txt and not in the suite
}

func (r *report) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n| test | runc | husk | | reason |\n|---|---|---|---|---|\n", r.suite)
	for _, v := range r.verdicts {
		cells := []string{v.test.String(), v.runc.String(), v.husk.String(), v.wrong, v.note}
		for i, cell := range cells {
			cells[i] = strings.ReplaceAll(cell, "|", `\|`)
		}
		fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | "))
	}
	return b.String()
}

// finish prints and writes the table. It returns an error if a test has another result than
// expected.
func (r *report) finish(markdown string) error {
	table := r.table()
	fmt.Println("\n" + table)
	var errs []error
	if markdown != "" {
		errs = append(errs, os.WriteFile(markdown, []byte(table), 0o644))
	}
	count := map[string]int{}
	for _, v := range r.verdicts {
		count["husk "+v.husk.String()]++
		count["runc "+v.runc.String()]++
		if v.wrong != "" {
			errs = append(errs, fmt.Errorf("%s: %s", v.test, v.wrong))
		}
		if r.pinned && !v.known {
			errs = append(errs, fmt.Errorf("%s: expected.txt does not say what becomes of it", v.test))
		}
	}
	for _, t := range r.missing {
		errs = append(errs, fmt.Errorf("%s: in expected.txt, and not in the suite", t))
	}
	if len(r.verdicts) == 0 {
		errs = append(errs, errors.New("no test was run"))
	}
	for _, name := range []string{"runc", "husk"} {
		fmt.Printf("%s: %d pass, %d fail, %d skipped, %d not run\n", name, count[name+" "+passed],
			count[name+" "+failed]+count[name+" "+timedOut], count[name+" "+skipped], count[name+" -"])
	}
	return errors.Join(errs...)
}
