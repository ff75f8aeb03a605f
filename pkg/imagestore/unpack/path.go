package unpack

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"
)

// Path is a path of a layer: any bytes but NUL. In JSON, a path that is no valid UTF-8 is written as a quoted string.
type Path string

// MarshalText implements encoding.TextMarshaler.
func (p Path) MarshalText() ([]byte, error) {
	if utf8.ValidString(string(p)) && !strings.HasPrefix(string(p), `"`) {
		return []byte(p), nil
	}
	return []byte(strconv.QuoteToASCII(string(p))), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Path) UnmarshalText(b []byte) error {
	if !strings.HasPrefix(string(b), `"`) {
		*p = Path(b)
		return nil
	}
	s, err := strconv.Unquote(string(b))
	*p = Path(s)
	return err
}

// clean returns name relative to the layer's root, without "." components; the root itself is ".". A ".." component is
// refused: no builder writes one, and what it should mean differs between unpackers.
func (a *applier) clean(name string) (string, error) {
	l := a.opt.Limits
	if l.PathLength > 0 && len(name) > l.PathLength {
		return "", fmt.Errorf("path longer than %d bytes: %w", l.PathLength, errdefs.ErrInvalidArgument)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("NUL in path: %w", errdefs.ErrInvalidArgument)
	}
	parts := strings.Split(name, "/")
	out := parts[:0]
	for _, p := range parts {
		switch {
		case p == "" || p == ".":
			continue
		case p == "..":
			return "", fmt.Errorf("path holds \"..\": %w", errdefs.ErrInvalidArgument)
		case l.NameLength > 0 && len(p) > l.NameLength:
			return "", fmt.Errorf("name longer than %d bytes: %w", l.NameLength, errdefs.ErrInvalidArgument)
		}
		out = append(out, p)
	}
	if l.Depth > 0 && len(out) > l.Depth {
		return "", fmt.Errorf("path deeper than %d: %w", l.Depth, errdefs.ErrInvalidArgument)
	}
	if len(out) == 0 {
		return ".", nil
	}
	return strings.Join(out, "/"), nil
}

// split cuts a clean path into its directory ("." for the root) and its last component.
func split(name string) (dir, base string) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return ".", name
}

func join(dir, base string) string {
	if dir == "." {
		return base
	}
	return dir + "/" + base
}
