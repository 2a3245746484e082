package integration

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// heldBy is the heading of the column with the tests that prove a sentence.
const heldBy = "held by"

var (
	testName       = regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z][A-Za-z0-9_]*`)
	testDefinition = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Z][A-Za-z0-9_]*)\(`)
)

// TestSecurityDocument: each row of a table in docs/security.md with the column "held by" names
// a test, and each test named on the page exists.
func TestSecurityDocument(t *testing.T) {
	text, err := os.ReadFile("../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := definedTests(t)
	rows, problems := checkClaims(string(text), tests)
	for _, p := range problems {
		t.Error(p)
	}
	if rows < 20 {
		t.Errorf("only %d sentences are held by tests: the page has changed its form and this test no longer reads it", rows)
	}
}

// TestSecurityDocumentCheck: the check can fail.
func TestSecurityDocumentCheck(t *testing.T) {
	tests := map[string]bool{"TestA": true, "FuzzB": true}
	for _, c := range []struct {
		name, text string
		rows       int
		problems   int
	}{
		{"each row has a test", "| claim | held by |\n|---|---|\n| a | `TestA` |\n| b | `FuzzB`, `TestA` |\n", 2, 0},
		{"a row without a test", "| claim | held by |\n|---|---|\n| a | |\n", 1, 1},
		{"a test that is not there", "| claim | held by |\n|---|---|\n| a | `TestGone` |\n", 1, 1},
		{"another table promises nothing", "| word | meaning |\n|---|---|\n| a | b |\n", 0, 0},
		{"a test named in the text", "As `TestGone` shows.\n", 0, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			rows, problems := checkClaims(c.text, tests)
			if rows != c.rows || len(problems) != c.problems {
				t.Errorf("%d rows, problems %q; want %d rows, %d problems", rows, problems, c.rows, c.problems)
			}
		})
	}
}

// checkClaims counts the rows of tables with the column heldBy, and returns what is wrong with
// the page.
func checkClaims(text string, tests map[string]bool) (rows int, problems []string) {
	column := -1
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		for _, name := range testName.FindAllString(line, -1) {
			if !tests[name] {
				problems = append(problems, "no such test: "+name+" in: "+line)
			}
		}
		if !strings.HasPrefix(line, "|") {
			column = -1
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if column < 0 {
			column = len(cells) // a table without the column
			for i, cell := range cells {
				if strings.TrimSpace(cell) == heldBy {
					column = i
				}
			}
			continue
		}
		if strings.HasPrefix(line, "|--") || column >= len(cells) {
			continue
		}
		rows++
		if !testName.MatchString(cells[column]) {
			problems = append(problems, "no test is named for: "+line)
		}
	}
	return rows, problems
}

// definedTests returns the names of all tests and fuzz targets of this repository.
func definedTests(t *testing.T) map[string]bool {
	t.Helper()
	tests := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "build" || d.Name() == ".git") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, match := range testDefinition.FindAllSubmatch(source, -1) {
			tests[string(match[1])] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tests
}
