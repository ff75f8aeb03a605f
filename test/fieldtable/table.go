package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// names are what must have a line: RPCs, and the fields of each message, both in the proto file's order.
type names struct {
	rpcs     []string
	messages []message
}

type message struct {
	name   string
	fields []string
}

func protoNames() names {
	file := (&runtimeapi.VersionRequest{}).ProtoReflect().Descriptor().ParentFile()
	var n names
	for i := range file.Services().Len() {
		methods := file.Services().Get(i).Methods()
		for j := range methods.Len() {
			n.rpcs = append(n.rpcs, string(methods.Get(j).Name()))
		}
	}
	var walk func(protoreflect.MessageDescriptors)
	walk = func(ms protoreflect.MessageDescriptors) {
		for i := range ms.Len() {
			m := ms.Get(i)
			if m.IsMapEntry() {
				continue
			}
			out := message{name: string(m.Name())}
			for j := range m.Fields().Len() {
				out.fields = append(out.fields, string(m.Fields().Get(j).Name()))
			}
			n.messages = append(n.messages, out)
			walk(m.Messages())
		}
	}
	walk(file.Messages())
	return n
}

// entry is what fields.txt says of a name.
type entry struct {
	tests  []testRef
	reason string // why there is no test
	used   bool
}

// testRef names a test function, and a part of its table if sub is not empty.
type testRef struct{ dir, name, sub string }

func (r testRef) String() string {
	s := r.dir + " " + r.name
	if r.sub != "" {
		s += "/" + r.sub
	}
	return s
}

type table map[string]*entry

func parse(text string) (table, error) {
	t := table{}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		bad := func(format string, a ...any) error {
			return fmt.Errorf("fields.txt:%d: %s", i+1, fmt.Sprintf(format, a...))
		}
		e := &entry{}
		left, right, ok := strings.Cut(line, " = ")
		if ok {
			for _, s := range strings.Split(right, "; ") {
				dir, name, ok := strings.Cut(strings.TrimSpace(s), " ")
				if !ok {
					return nil, bad("%q is no test", s)
				}
				name, sub, _ := strings.Cut(name, "/")
				e.tests = append(e.tests, testRef{dir, name, sub})
			}
		} else if left, e.reason, ok = strings.Cut(line, " - "); !ok || e.reason == "" {
			return nil, bad("neither a test nor a reason")
		}
		message, fields, isField := strings.Cut(left, ".")
		keys := []string{left}
		if isField {
			keys = nil
			for _, f := range strings.Split(fields, ",") {
				keys = append(keys, message+"."+f)
			}
		}
		for _, k := range keys {
			if t[k] != nil {
				return nil, bad("%s stands there twice", k)
			}
			one := *e
			t[k] = &one
		}
	}
	return t, nil
}

// row is one line of the document.
type row struct {
	message, name string // message is empty for an RPC
	*entry
}

func (t table) rows(n names) ([]row, error) {
	var rows []row
	var errs []error
	add := func(message, name string, keys ...string) {
		for _, k := range keys {
			if e := t[k]; e != nil {
				e.used = true
				rows = append(rows, row{message, name, e})
				return
			}
		}
		errs = append(errs, fmt.Errorf("fields.txt has no line for %s", keys[0]))
	}
	for _, r := range n.rpcs {
		add("", r, r)
	}
	for _, m := range n.messages {
		for _, f := range m.fields {
			add(m.name, f, m.name+"."+f, m.name+".*")
		}
	}
	for k, e := range t {
		if !e.used {
			errs = append(errs, fmt.Errorf("fields.txt: the CRI has no %s", k))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return rows, errors.Join(errs...)
}

// existing checks that each test is there: the function, and in it or in a table outside a string equal to the part's name.
func existing(repo string, rows []row) error {
	dirs := map[string]*sources{}
	seen := map[testRef]bool{}
	var errs []error
	for _, r := range rows {
		for _, ref := range r.tests {
			if seen[ref] {
				continue
			}
			seen[ref] = true
			if dirs[ref.dir] == nil {
				s, err := readTests(filepath.Join(repo, ref.dir))
				if err != nil {
					return err
				}
				dirs[ref.dir] = s
			}
			if s := dirs[ref.dir]; !s.tests[ref.name] {
				errs = append(errs, fmt.Errorf("%s: there is no such test", ref))
			} else if ref.sub != "" && !s.strings[literal{ref.name, ref.sub}] && !s.strings[literal{"", ref.sub}] {
				errs = append(errs, fmt.Errorf("%s: the test has no such part", ref))
			}
		}
	}
	return errors.Join(errs...)
}

// sources are the tests of a directory, and every string in their files.
type sources struct {
	tests   map[string]bool
	strings map[literal]bool
}

// literal is a string in a test function, or outside of all.
type literal struct{ test, text string }

func readTests(dir string) (*sources, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return nil, err
	}
	s := &sources{map[string]bool{}, map[literal]bool{}}
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, text, 0)
		if err != nil {
			return nil, err
		}
		for _, d := range f.Decls {
			in := "" // for tables and helpers that stand outside of tests
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && (strings.HasPrefix(fn.Name.Name, "Test") || strings.HasPrefix(fn.Name.Name, "Fuzz")) {
				in = fn.Name.Name
				s.tests[in] = true
			}
			ast.Inspect(d, func(n ast.Node) bool {
				if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					if text, err := strconv.Unquote(lit.Value); err == nil {
						s.strings[literal{in, text}] = true
					}
				}
				return true
			})
		}
	}
	return s, nil
}

func markdown(rows []row) string {
	var b strings.Builder
	b.WriteString("# The CRI, field by field\n\nWritten by `go run ./test/fieldtable` from `test/fieldtable/fields.txt`. Each RPC and each field of a message, and the tests that show what\n" +
		"cri-server makes of it. Tests in `test/e2e` run real containers on a node of their own.\n\n## RPCs\n\n| RPC | tests |\n|---|---|\n")
	message := ""
	for _, r := range rows {
		if r.message != message {
			message = r.message
			fmt.Fprintf(&b, "\n## %s\n\n| field | tests |\n|---|---|\n", message)
		}
		fmt.Fprintf(&b, "| %s | %s |\n", r.name, r.cell())
	}
	return b.String()
}

func (e *entry) cell() string {
	if e.reason != "" {
		return "– " + e.reason
	}
	var cells []string
	for _, ref := range e.tests {
		cells = append(cells, "`"+ref.String()+"`")
	}
	return strings.Join(cells, "<br>")
}
