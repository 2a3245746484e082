package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDecisionsAreListed: docs/adr/README.md lists every decision, and says which ones another
// has replaced.
func TestDecisionsAreListed(t *testing.T) {
	index, err := os.ReadFile("../docs/adr/README.md")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob("../docs/adr/0*.md")
	if err != nil || len(pages) < 20 {
		t.Fatalf("%d decisions, %v", len(pages), err)
	}
	rows := map[string]string{}
	for line := range strings.Lines(string(index)) {
		if _, rest, ok := strings.Cut(line, "]("); ok {
			name, _, _ := strings.Cut(rest, ")")
			rows[name] = line
		}
	}
	for _, page := range pages {
		name := filepath.Base(page)
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		row, found := rows[name]
		superseded := strings.Contains(string(text), "\nSuperseded by ")
		if !found || superseded != strings.Contains(row, "superseded by") {
			t.Errorf("%s: row %q", name, row)
		}
	}
}
