package engine

import (
	"encoding/json"
	"slices"
	"strings"
	"unique"

	"github.com/seed-9a14075a/cri-server/internal/quickjson"
)

// PackedCgroup is a Cgroup as it is kept for as long as a container is there: a fifteenth of the memory, since the directories of
// a cgroup in a dozen hierarchies differ in their beginnings only, and those are the same for all cgroups. The zero value
// stands for a nil Cgroup. It may be copied, and equals another of the same directories.
type PackedCgroup struct {
	head unique.Handle[string] // see Pack
	tail string                // what all directories end in
}

// Pack packs what is c's own; c may be nil. Nothing of c stays in memory.
func (c *Cgroup) Pack() PackedCgroup {
	if c = c.Own(); c == nil {
		return PackedCgroup{}
	}
	names := make([]string, 0, len(c.V1))
	dirs := make([]string, 0, len(c.V1)+1)
	for name := range c.V1 {
		names = append(names, name)
	}
	slices.Sort(names) // so that it is the same for all
	for _, name := range names {
		dirs = append(dirs, c.V1[name])
	}
	if c.Unified != "" {
		dirs = append(dirs, c.Unified)
	}
	tail := commonEnd(dirs)
	// The unified hierarchy's beginning, with a mark that there is one, then name and beginning of the others. A path has no
	// NUL in it.
	var head strings.Builder
	if c.Unified != "" {
		head.WriteByte('/')
		head.WriteString(strings.TrimSuffix(c.Unified, tail))
	}
	for _, name := range names {
		head.WriteByte(0)
		head.WriteString(name)
		head.WriteByte(0)
		head.WriteString(strings.TrimSuffix(c.V1[name], tail))
	}
	return PackedCgroup{head: unique.Make(head.String()), tail: strings.Clone(tail)}
}

// commonEnd is the longest end that all have in common and that begins with a slash.
func commonEnd(dirs []string) string {
	if len(dirs) == 0 {
		return ""
	}
	end := dirs[0]
	for _, dir := range dirs[1:] {
		n := 0
		for n < len(end) && n < len(dir) && end[len(end)-1-n] == dir[len(dir)-1-n] {
			n++
		}
		end = end[len(end)-n:]
	}
	if i := strings.IndexByte(end, '/'); i >= 0 {
		return end[i:]
	}
	return ""
}

// each calls f with the beginning of the unified hierarchy's directory first, if there is one, under the name "", until it
// returns false. They all end in p.tail.
func (p PackedCgroup) each(f func(name, head string) bool) {
	if p == (PackedCgroup{}) {
		return
	}
	unified, rest, _ := strings.Cut(p.head.Value(), "\x00")
	if unified != "" && !f("", unified[1:]) {
		return
	}
	for rest != "" {
		var name, head string
		name, rest, _ = strings.Cut(rest, "\x00")
		head, rest, _ = strings.Cut(rest, "\x00")
		if !f(name, head) {
			return
		}
	}
}

// AppendJSON appends what the JSON of the Cgroup is.
func (p PackedCgroup) AppendJSON(b []byte) []byte {
	if p == (PackedCgroup{}) {
		return append(b, "null"...)
	}
	path := func(head string) {
		b = quickjson.String(b, head)
		tail := len(b) - 1 // the two are one string
		b = quickjson.String(b[:tail], p.tail)
		b = append(b[:tail], b[tail+1:]...)
	}
	b = append(b, '{')
	v1 := false
	p.each(func(name, head string) bool {
		switch {
		case name == "":
			b = quickjson.Key(b, "unified")
			path(head)
			return true
		case !v1:
			b = append(quickjson.Key(b, "v1"), '{')
			v1 = true
		default:
			b = append(b, ',')
		}
		b = append(quickjson.String(b, name), ':')
		path(head)
		return true
	})
	if v1 {
		b = append(b, '}')
	}
	return append(b, '}')
}

// MarshalJSON implements json.Marshaler.
func (p PackedCgroup) MarshalJSON() ([]byte, error) { return p.AppendJSON(nil), nil }

// UnmarshalJSON implements json.Unmarshaler.
func (p *PackedCgroup) UnmarshalJSON(b []byte) error {
	var c *Cgroup
	if err := json.Unmarshal(b, &c); err != nil {
		return err
	}
	*p = c.Pack()
	return nil
}

// Dir is the directory in one hierarchy: the unified one for "", else the v1 hierarchy of that name. "" where there is none.
func (p PackedCgroup) Dir(hierarchy string) (dir string) {
	p.each(func(name, head string) bool {
		if name == hierarchy {
			dir = head + p.tail
		}
		return name != hierarchy
	})
	return dir
}

// Cgroup unpacks it.
func (p PackedCgroup) Cgroup() *Cgroup {
	if p == (PackedCgroup{}) {
		return nil
	}
	c := &Cgroup{}
	p.each(func(name, head string) bool {
		if name == "" {
			c.Unified = head + p.tail
			return true
		}
		if c.V1 == nil {
			c.V1 = map[string]string{}
		}
		c.V1[name] = head + p.tail
		return true
	})
	return c
}
