package model_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestProblemsPage: docs/problems.md has a section for every problem code that
// is raised somewhere, names those that nobody raises as such, and no others.
func TestProblemsPage(t *testing.T) {
	root := filepath.Join("..", "..")
	text, err := os.ReadFile(filepath.Join(root, "docs", "problems.md"))
	if err != nil {
		t.Fatal(err)
	}
	raised, reserved, _ := strings.Cut(string(text), "\n## Not raised yet\n")
	sections := firstMatches(regexp.MustCompile("(?m)^### `([^`]+)`"), raised)
	listed := firstMatches(regexp.MustCompile("(?m)^- `([^`]+)`"), reserved)

	codes, uses := problemCodes(t, root)
	var all []string
	for name, code := range codes {
		all = append(all, code)
		where, as := sections, "a section"
		if uses[name] == 0 {
			where, as = listed, "a line under Not raised yet"
		}
		if !slices.Contains(where, code) {
			t.Errorf("docs/problems.md lacks %s for %s (%s, used %d times)", as, code, name, uses[name])
		}
	}
	if len(all) == 0 {
		t.Error("no problem codes found in the code")
	}
	for _, code := range append(sections, listed...) {
		if !slices.Contains(all, code) {
			t.Errorf("docs/problems.md has %s, which the code does not", code)
		}
	}
}

func firstMatches(re *regexp.Regexp, text string) []string {
	var out []string
	for _, m := range re.FindAllStringSubmatch(text, -1) {
		out = append(out, m[1])
	}
	return out
}

// problemCodes finds all constants of type Code or model.Code in the module, by
// their names, and counts where else the names stand.
func problemCodes(t *testing.T, root string) (codes map[string]string, uses map[string]int) {
	t.Helper()
	codes, uses = make(map[string]string), make(map[string]int)
	seen := make(map[string]int)
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() && path != root && (strings.HasPrefix(name, ".") || name == "test" || name == "tools") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.Ident:
				seen[n.Name]++
			case *ast.ValueSpec:
				for i, v := range n.Values {
					if lit, ok := v.(*ast.BasicLit); ok && isCode(n.Type) {
						if codes[n.Names[i].Name], err = strconv.Unquote(lit.Value); err != nil {
							t.Error(err)
						}
					}
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range codes {
		uses[name] = seen[name] - 1 // its declaration
	}
	return codes, uses
}

func isCode(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name == "Code"
	case *ast.SelectorExpr:
		return e.Sel.Name == "Code"
	}
	return false
}
