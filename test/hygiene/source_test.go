package hygiene

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const (
	maxFile     = 400 // lines
	maxFunction = 100 // lines; above goodFunc they are listed with -v
	goodFunc    = 80
	maxTable    = 160 // lines of a test: a table of cases may be long
)

var generated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

// A package's comment is where a reader learns the model.
func TestPackagesAreDocumented(t *testing.T) {
	documented := map[string]bool{}
	first := map[string]string{}
	for _, f := range files(t, "*.go") {
		if strings.HasSuffix(f, "_test.go") || strings.Contains(f, "testdata/") {
			continue
		}
		a, err := parser.ParseFile(token.NewFileSet(), filepath.Join(repo, f), nil, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			t.Error(err)
			continue
		}
		dir := filepath.Dir(f)
		if first[dir] == "" {
			first[dir] = f
		}
		documented[dir] = documented[dir] || a.Doc != nil && len(a.Doc.Text()) > 20
	}
	for dir := range first {
		if !documented[dir] {
			t.Errorf("package in %s has no comment", dir)
		}
	}
}

func TestSizes(t *testing.T) {
	for _, f := range files(t, "*.go", "*.c", "*.h", "*.sh") {
		b, err := os.ReadFile(filepath.Join(repo, f))
		if err != nil {
			t.Fatal(err)
		}
		if generated.Match(b) || strings.Contains(f, "testdata/") {
			continue
		}
		if n := bytes.Count(b, []byte("\n")); n > maxFile {
			t.Errorf("%s has %d lines; more than %d are hard to read: split it by what its parts do", f, n, maxFile)
		}
		if strings.HasSuffix(f, ".go") {
			functions(t, f, b)
		}
	}
}

func functions(t *testing.T, file string, source []byte) {
	set := token.NewFileSet()
	a, err := parser.ParseFile(set, file, source, 0)
	if err != nil {
		t.Error(err)
		return
	}
	for _, d := range a.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		n := set.Position(f.End()).Line - set.Position(f.Pos()).Line + 1
		limit := maxFunction
		if strings.HasSuffix(file, "_test.go") {
			limit = maxTable
		}
		switch {
		case n > limit:
			t.Errorf("%s: function %s has %d lines; more than %d are too many", set.Position(f.Pos()), f.Name.Name, n, limit)
		case n > goodFunc:
			t.Logf("long: %s %s: %d lines", set.Position(f.Pos()), f.Name.Name, n)
		}
	}
}

func TestWords(t *testing.T) {
	// Put together here, so that this file doesn't hold what it looks for.
	banned := map[string]*regexp.Regexp{
		"a note to oneself":  regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b`),
		"a stub":             regexp.MustCompile(`panic\("not ` + `implemented`),
		"a path of one desk": regexp.MustCompile(`(^|[^\w.-])/(wo` + `rk|tmp/bri` + `ef)/`),
	}
	for _, f := range files(t, "*") {
		b, err := os.ReadFile(filepath.Join(repo, f))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.IndexByte(b[:min(len(b), 8000)], 0) >= 0 || strings.HasSuffix(f, "go.sum") {
			continue
		}
		for what, re := range banned {
			if at := re.FindIndex(b); at != nil {
				t.Errorf("%s:%d: %s: %q", f, 1+bytes.Count(b[:at[0]], []byte("\n")), what, b[at[0]:at[1]])
			}
		}
	}
}
