package config

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// value binds an option to its field of Config.
type value interface {
	typ() string
	literal() string
	setTOML(v any) error     // what go-toml decodes into an any
	setText(s string) error  // what stands on a command line
	assign(from value) error // from the same option of another Config
}

// bound implements value for one type of field.
type bound[T any] struct {
	p        *T
	kind     string
	fromTOML func(any) (T, error)
	fromText func(string) (T, error)
	format   func(T) string
	check    func(T) error
}

func (b *bound[T]) typ() string     { return b.kind }
func (b *bound[T]) literal() string { return b.format(*b.p) }

func (b *bound[T]) setTOML(v any) error {
	t, err := b.fromTOML(v)
	return b.set(t, err)
}

func (b *bound[T]) setText(s string) error {
	t, err := b.fromText(s)
	return b.set(t, err)
}

func (b *bound[T]) set(t T, err error) error {
	if err == nil && b.check != nil {
		err = b.check(t)
	}
	if err == nil {
		*b.p = t
	}
	return err
}

func (b *bound[T]) assign(from value) error {
	f, ok := from.(*bound[T])
	if !ok {
		return fmt.Errorf("a %s is no %s", from.typ(), b.kind)
	}
	*b.p = *f.p
	return nil
}

func quote(s string) string {
	// TOML's basic strings know \uXXXX but not Go's \x.
	var w strings.Builder
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			w.WriteByte('\\')
			w.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&w, `\u%04X`, r)
		default:
			w.WriteRune(r)
		}
	}
	return `"` + w.String() + `"`
}

func wantString(v any) (string, error) {
	if s, ok := v.(string); ok {
		return s, nil
	}
	return "", fmt.Errorf("want a string, not %s", kindOf(v))
}

func kindOf(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case bool:
		return "a boolean"
	case int64:
		return "an integer"
	case float64:
		return "a float"
	case []any:
		return "an array"
	case map[string]any:
		return "a table"
	}
	return "a date or time"
}

func text(p *string, def, kind string, check func(string) error) value {
	*p = def
	return &bound[string]{p: p, kind: kind, fromTOML: wantString, format: quote, check: check,
		fromText: func(s string) (string, error) { return s, nil }}
}

func choice(p *string, def string, of ...string) value {
	*p = def
	return &bound[string]{p: p, kind: strings.Join(of, ", "), fromTOML: wantString, format: quote,
		fromText: func(s string) (string, error) { return s, nil },
		check: func(s string) error {
			if slices.Contains(of, s) {
				return nil
			}
			return fmt.Errorf("%q is none of %s%s", s, strings.Join(of, ", "), suggest(s, of))
		}}
}

func boolean(p *bool, def bool) value {
	*p = def
	return &bound[bool]{p: p, kind: "boolean", format: strconv.FormatBool,
		fromTOML: func(v any) (bool, error) {
			if b, ok := v.(bool); ok {
				return b, nil
			}
			return false, fmt.Errorf("want true or false, not %s", kindOf(v))
		},
		fromText: func(s string) (bool, error) {
			b, err := strconv.ParseBool(s)
			if err != nil {
				return false, fmt.Errorf("want true or false, not %q", s)
			}
			return b, nil
		}}
}

func integer[T int | int64 | uint64](p *T, def, least, most T) value {
	*p = def
	parse := func(s string) (T, error) {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("want an integer, not %q", s)
		}
		// Before the conversion: a negative number must not become a huge unsigned one.
		if n < int64(least) || n > int64(most) {
			return 0, fmt.Errorf("%d is not within %d and %d", n, least, most)
		}
		return T(n), nil
	}
	return &bound[T]{p: p, kind: "integer", fromText: parse,
		format: func(n T) string { return fmt.Sprint(n) },
		fromTOML: func(v any) (T, error) {
			if n, ok := v.(int64); ok {
				return parse(strconv.FormatInt(n, 10))
			}
			return 0, fmt.Errorf("want an integer, not %s", kindOf(v))
		}}
}

func duration(p *time.Duration, def, least, most time.Duration) value {
	*p = def
	parse := func(s string) (time.Duration, error) {
		d, err := time.ParseDuration(s)
		if err != nil {
			return 0, fmt.Errorf("want a duration such as 90s or 1h30m, not %q", s)
		}
		if d < least || d > most {
			return 0, fmt.Errorf("%s is not within %v and %v", s, least, most)
		}
		return d, nil
	}
	return &bound[time.Duration]{p: p, kind: "duration", fromText: parse,
		format: func(d time.Duration) string { return quote(shortDuration(d)) },
		fromTOML: func(v any) (time.Duration, error) {
			if s, ok := v.(string); ok {
				return parse(s)
			}
			return 0, fmt.Errorf("want a duration such as \"90s\", not %s", kindOf(v))
		}}
}

// shortDuration leaves out the zeros of 4h0m0s.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

var units = []struct {
	name  string
	bytes int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

func size(p *int64, def, least, most int64) value {
	*p = def
	parse := func(s string) (int64, error) {
		n, unit := s, int64(1)
		for _, u := range units {
			if rest, ok := strings.CutSuffix(s, u.name); ok {
				n, unit = strings.TrimSpace(rest), u.bytes
				break
			}
		}
		v, err := strconv.ParseInt(n, 10, 64)
		if err != nil || v > math.MaxInt64/unit || v < 0 {
			return 0, fmt.Errorf("want a number of bytes, or such as 64MiB, not %q", s)
		}
		if v *= unit; v < least || v > most {
			return 0, fmt.Errorf("%s is not within %s and %s", s, formatSize(least), formatSize(most))
		}
		return v, nil
	}
	return &bound[int64]{p: p, kind: "size", fromText: parse,
		format: func(n int64) string { return quote(formatSize(n)) },
		fromTOML: func(v any) (int64, error) {
			switch v := v.(type) {
			case string:
				return parse(v)
			case int64:
				return parse(strconv.FormatInt(v, 10))
			}
			return 0, fmt.Errorf("want a number of bytes or a string such as \"64MiB\", not %s", kindOf(v))
		}}
}

func formatSize(n int64) string {
	for _, u := range units {
		if n >= u.bytes && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

func mode(p *os.FileMode, def os.FileMode) value {
	*p = def
	parse := func(s string) (os.FileMode, error) {
		n, err := strconv.ParseUint(strings.TrimPrefix(s, "0o"), 8, 32)
		if err != nil || n > 0o777 {
			return 0, fmt.Errorf("want permissions such as \"0660\", not %q", s)
		}
		return os.FileMode(n), nil
	}
	return &bound[os.FileMode]{p: p, kind: "permissions", fromText: parse,
		format: func(m os.FileMode) string { return fmt.Sprintf("%q", fmt.Sprintf("%04o", m)) },
		fromTOML: func(v any) (os.FileMode, error) {
			switch v := v.(type) {
			case string:
				return parse(v)
			case int64: // 0o660 in TOML
				return parse(strconv.FormatInt(v, 8))
			}
			return 0, fmt.Errorf("want permissions such as \"0660\", not %s", kindOf(v))
		}}
}

func list(p *[]string, def []string, kind string, check func(string) error) value {
	*p = def
	return &bound[[]string]{p: p, kind: "list of " + kind,
		format: func(l []string) string {
			q := make([]string, len(l))
			for i, s := range l {
				q[i] = quote(s)
			}
			return "[" + strings.Join(q, ", ") + "]"
		},
		fromText: func(s string) ([]string, error) {
			if s == "" {
				return nil, nil
			}
			return strings.Split(s, ","), nil
		},
		fromTOML: func(v any) ([]string, error) {
			elems, ok := v.([]any)
			if !ok {
				return nil, fmt.Errorf("want an array of strings, not %s", kindOf(v))
			}
			l := make([]string, len(elems))
			for i, e := range elems {
				s, err := wantString(e)
				if err != nil {
					return nil, fmt.Errorf("element %d: %w", i+1, err)
				}
				l[i] = s
			}
			return l, nil
		},
		check: func(l []string) error {
			for _, s := range l {
				if check == nil {
					break
				}
				if err := check(s); err != nil {
					return err
				}
			}
			return nil
		}}
}
