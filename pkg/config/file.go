package config

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// maxFile is far above any configuration.
const maxFile = 1 << 20

// readFile sets the options that the file names and returns all that is wrong with it.
func (c *Config) readFile(path string) []error {
	b, err := slurp(path)
	if err != nil {
		return []error{fmt.Errorf("config: %w", err)}
	}
	var tree map[string]any
	if err := toml.Unmarshal(b, &tree); err != nil {
		var de *toml.DecodeError
		if errors.As(err, &de) {
			line, col := de.Position()
			return []error{fmt.Errorf("%s:%d:%d: %w: %w", path, line, col, err, errdefs.ErrInvalidArgument)}
		}
		return []error{fmt.Errorf("%s: %w: %w", path, err, errdefs.ErrInvalidArgument)}
	}
	r := reader{c: c, path: path, lines: positions(b)}
	r.table(nil, tree)
	return r.errs
}

func slurp(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%s has more than %d bytes: %w", path, maxFile, errdefs.ErrInvalidArgument)
	}
	return b, nil
}

type reader struct {
	c     *Config
	path  string
	lines map[string]int
	errs  []error
}

// table walks the decoded file; keys in the order of their lines, so that errors come in that order too.
func (r *reader) table(prefix []string, t map[string]any) {
	keys := slices.Collect(maps.Keys(t))
	slices.SortFunc(keys, func(a, b string) int {
		if d := r.line(append(prefix, a)) - r.line(append(prefix, b)); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	for _, k := range keys {
		key := append(slices.Clone(prefix), k)
		if o := r.c.option(key); o != nil {
			o.Origin = Origin{File: r.path, Line: r.line(key)}
			if err := o.value.setTOML(t[k]); err != nil {
				r.errs = append(r.errs, o.errorf("%v", err))
			}
			continue
		}
		sub, ok := t[k].(map[string]any)
		switch {
		case ok && r.c.isTable(key):
			if len(key) == 2 && key[0] == runtimesKey {
				r.c.runtimeOptions(k) // an empty [runtimes.NAME] is a handler too
			}
			r.table(key, sub)
		case r.c.isTable(key):
			r.fail(key, "want a table, not %s", kindOf(t[k]))
		default:
			r.fail(key, "unknown key%s", suggest(strings.Join(key, "."), r.c.keys()))
		}
	}
}

func (r *reader) line(key []string) int { return r.lines[strings.Join(key, "\x00")] }

func (r *reader) fail(key []string, format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf("%s:%d: %s: %s: %w", r.path, r.line(key), strings.Join(key, "."),
		fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument))
}

// isTable tells whether key is a section.
func (c *Config) isTable(key []string) bool {
	if key[0] == runtimesKey {
		return len(key) == 1 || len(key) == 2 && handlerName.MatchString(key[1])
	}
	prefix := strings.Join(key, ".") + "."
	return slices.ContainsFunc(c.opts, func(o *Option) bool { return strings.HasPrefix(o.Key, prefix) })
}

func (c *Config) keys() []string {
	var keys []string
	for _, o := range c.Options() {
		keys = append(keys, o.Key)
	}
	return keys
}

// positions maps keys, their parts joined by NUL, to the lines on which they stand. The document is known to be good.
func positions(b []byte) map[string]int {
	p := unstable.Parser{}
	p.Reset(b)
	lines := map[string]int{}
	var prefix []string
	for p.NextExpression() {
		switch e := p.Expression(); e.Kind {
		case unstable.Table, unstable.ArrayTable:
			prefix = mark(&p, lines, nil, e.Key())
		case unstable.KeyValue:
			markValue(&p, lines, prefix, e)
		}
	}
	return lines
}

func markValue(p *unstable.Parser, lines map[string]int, prefix []string, kv *unstable.Node) {
	key := mark(p, lines, prefix, kv.Key())
	if v := kv.Value(); v.Kind == unstable.InlineTable {
		for it := v.Children(); it.Next(); {
			if it.Node().Kind == unstable.KeyValue {
				markValue(p, lines, key, it.Node())
			}
		}
	}
}

// mark notes the line of a dotted key and of each table it implies, and returns the whole key.
func mark(p *unstable.Parser, lines map[string]int, prefix []string, it unstable.Iterator) []string {
	key := slices.Clone(prefix)
	for it.Next() {
		n := it.Node()
		key = append(key, string(n.Data))
		name := strings.Join(key, "\x00")
		if _, ok := lines[name]; !ok {
			lines[name] = p.Shape(n.Raw).Start.Line
		}
	}
	return key
}
