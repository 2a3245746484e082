package main

import (
	"strings"
	"testing"
)

// TestExamples: every verb that works has an example, and the flags in each example exist.
func TestExamples(t *testing.T) {
	app := newApp()
	for _, c := range app.Commands {
		lines := examples[c.Name]
		if len(lines) == 0 && c.Name != "checkpoint" && c.Name != "restore" {
			t.Errorf("%s has no example", c.Name)
		}
		known := map[string]bool{}
		for _, f := range app.Flags {
			known["--"+f.Names()[0]] = true
		}
		for _, f := range c.Flags {
			known["--"+f.Names()[0]] = true
		}
		for _, sub := range c.Subcommands {
			for _, f := range sub.Flags {
				known["--"+f.Names()[0]] = true
			}
		}
		for _, line := range lines {
			if !strings.HasPrefix(line, "husk ") || !strings.Contains(line, c.Name) {
				t.Errorf("%s: example %q is of another command", c.Name, line)
			}
			for word := range strings.FieldsSeq(line) {
				if strings.HasPrefix(word, "--") && !known[word] {
					t.Errorf("%s: example %q has the unknown flag %s", c.Name, line, word)
				}
			}
		}
	}
	for verb := range examples {
		if app.Command(verb) == nil {
			t.Errorf("there are examples for %s, which is no verb", verb)
		}
	}
}
