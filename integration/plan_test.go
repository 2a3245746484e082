package integration

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

const specconv = module + "/host/specconv"

// exported is a package with the file of its types that the compiler has written.
type exported struct {
	ImportPath, Dir, Export string
	GoFiles, Imports        []string
}

func listExported(t *testing.T) map[string]exported {
	t.Helper()
	cmd := exec.Command("go", "list", "-export", "-deps", "-json=ImportPath,Dir,Export,GoFiles,Imports", module+"/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	all := map[string]exported{}
	for d := json.NewDecoder(out); ; {
		var p exported
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all[p.ImportPath] = p
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("go list: %v", err)
	}
	return all
}

// TestPlanIsFinal: a plan changes no more once specconv.Convert has returned it. What is
// found out later goes beside it, or who reads a plan would have to know who was there before.
func TestPlanIsFinal(t *testing.T) {
	all := listExported(t)
	fset := token.NewFileSet()
	types := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(all[path].Export) })
	readers := 0
	for path, p := range all {
		if path == specconv || !slices.Contains(p.Imports, specconv) {
			continue
		}
		var files []*ast.File
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
		}
		writes, reads, err := planWrites(path, fset, files, types)
		if err != nil {
			t.Fatal(err)
		}
		for _, pos := range writes {
			t.Errorf("%s changes a plan: what is found out later goes into specconv.Found or supervisor.Bootstrap", pos)
		}
		if reads {
			readers++
		}
	}
	if readers < 2 {
		t.Errorf("only %d packages read a plan: this test no longer looks at them", readers)
	}
}

// TestPlanWrites: the test above must be able to fail.
func TestPlanWrites(t *testing.T) {
	all := listExported(t)
	fset := token.NewFileSet()
	types := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(all[path].Export) })
	const text = `package p
import "github.com/huskvm/husk/host/specconv"
type holder struct { p *specconv.Plan; byValue specconv.Plan }
func f(h *holder) {
	h.p.Warnings = append(h.p.Warnings, "")
	h.p.Shadow.Face[0].Path = ""
	h.byValue.VM.NICs++
	n := &h.p.VM.NICs
	_ = n
	h.p = nil // another plan, and no change of one
	names := h.p.Shadow.Args
	_ = names
}`
	f, err := parser.ParseFile(fset, "p.go", text, 0)
	if err != nil {
		t.Fatal(err)
	}
	writes, reads, err := planWrites("p", fset, []*ast.File{f}, types)
	if err != nil {
		t.Fatal(err)
	}
	var lines []int
	for _, pos := range writes {
		lines = append(lines, pos.Line)
	}
	if !slices.Equal(lines, []int{5, 6, 7, 8}) || !reads {
		t.Errorf("writes in lines %v, reads %t", lines, reads)
	}
}

// planWrites returns where a package assigns to a part of a plan, or takes the address of
// one, and whether the package has to do with plans at all.
func planWrites(path string, fset *token.FileSet, files []*ast.File, from types.Importer) (writes []token.Position, reads bool, err error) {
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}}
	if _, err := (&types.Config{Importer: from}).Check(path, fset, files, info); err != nil {
		return nil, false, err
	}
	isPlan := func(e ast.Expr) bool {
		typ := info.TypeOf(e)
		if p, ok := typ.(*types.Pointer); ok {
			typ = p.Elem()
		}
		named, ok := typ.(*types.Named)
		return ok && named.Obj().Name() == "Plan" && named.Obj().Pkg() != nil && named.Obj().Pkg().Path() == specconv
	}
	note := func(e ast.Expr) {
		for inner := within(e); inner != nil; inner = within(inner) {
			if isPlan(inner) {
				writes = append(writes, fset.Position(e.Pos()))
				return
			}
		}
	}
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				for _, e := range n.Lhs {
					note(e)
				}
			case *ast.IncDecStmt:
				note(n.X)
			case *ast.UnaryExpr:
				if n.Op == token.AND {
					note(n.X)
				}
			case *ast.SelectorExpr:
				reads = reads || isPlan(n.X)
			}
			return true
		})
	}
	return writes, reads, nil
}

// within is the expression of what e is a part, or nil.
func within(e ast.Expr) ast.Expr {
	switch e := e.(type) {
	case *ast.SelectorExpr:
		return e.X
	case *ast.IndexExpr:
		return e.X
	case *ast.StarExpr:
		return e.X
	case *ast.ParenExpr:
		return e.X
	}
	return nil
}
