package main

import "testing"

func TestParse(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"nothing", "", "0/0"},
		{"results", "TAP version 13\nok 1 - a\nnot ok 2 - b\n1..2\n", "1/1"},
		{"results of no text", "ok\nnot ok\n1..2\n", "1/1"},
		{"words that only begin so", "okay\nnot okay\n", "0/0"},
		{"error of a result", "ok 1 - a\n  ---\n  {\n    \"error\": \"exit status 1\"\n  }\n  ...\n1..1\n", "1/0"},
		{"error of none", "TAP version 13\n  ---\n  {\n    \"error\": \"hooks MUST\\nRefer\"\n  }\n  ...\n1..0\n", "0/0!"},
		{"second diagnostic of a result", "ok 1 - a\n  ---\n  {}\n  ...\n  ---\n  {\"error\": \"b\"}\n  ...\n1..1\n", "1/0!"},
		{"diagnostic before its result", "  ---\n  {\n    \"stdout\": \"not ok 1\\n\"\n  }\n  ...\nok 1 - a\n1..1\n", "1/0"},
		{"result inside a diagnostic", "ok 1 - a\n  ---\nnot ok 2 - b\n  ...\n1..1\n", "1/0"},
		{"results missing", "ok 1 - a\n1..2\n", "1/0!"},
		{"two documents", "TAP version 13\nok 1 - a\n1..1\nTAP version 13\nok 1 - b\nnot ok 2 - c\n1..2\n", "2/1"},
		{"two documents, results missing", "ok 1 - a\n1..1\nok 1 - b\n1..2\n", "2/0!"},
		{"no plan", "ok 1 - a\n", "1/0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := parse([]byte(c.text)).String(); got != c.want {
				t.Errorf("%s: %s, want %s", c.name, got, c.want)
			}
		})
	}
}

func TestAtLeast(t *testing.T) {
	for _, c := range []struct {
		o, p string
		want bool
	}{
		{"3/0", "3/0", true},
		{"4/0", "3/1", true},
		{"2/0", "3/0", false},
		{"3/1", "3/0", false},
		{"4/1", "3/0", false},
		{"3/0!", "3/0", false},
		{"0/0", "309/0!", true},
		{"309/0!", "0/0", false},
		{"0/0!", "0/0!", true},
		{"4/4!", "0/0!", true},
		{"0/0!", "1/4!", false},
	} {
		t.Run(c.o, func(t *testing.T) {
			o, err := parseOutcome(c.o)
			if err != nil {
				t.Fatal(err)
			}
			p, err := parseOutcome(c.p)
			if err != nil {
				t.Fatal(err)
			}
			if got := o.atLeast(p); got != c.want {
				t.Errorf("%s at least %s: %v, want %v", o, p, got, c.want)
			}
		})
	}
}

func TestParseOutcomeRejects(t *testing.T) {
	for _, text := range []string{"", "3", "3/", "/3", "a/b", "-1/0", "0/-1", "3/0!!", "3/0 !"} {
		if o, err := parseOutcome(text); err == nil {
			t.Errorf("%q is read as %s", text, o)
		}
	}
}
