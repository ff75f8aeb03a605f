package monitor

import "bytes"

// kept is what the body says of one container. Its Data is neither looked into nor copied, and is part of body: it is for
// another cri-monitor to read, and three pictures of each container come this way.
func (f *frame) kept() (kept, error) {
	if id, data, ok := cutKept(f.body); ok {
		return kept{ID: id, Data: data}, nil
	}
	var k kept
	return k, f.decode(&k)
}

// cutKept takes apart what appendJSON makes of an id and data; not ok where there is anything else.
func cutKept(b []byte) (id string, data []byte, ok bool) {
	rest, ok := bytes.CutPrefix(b, []byte(`{"id":"`))
	if !ok {
		return "", nil, false
	}
	name, rest, ok := bytes.Cut(rest, []byte(`","data":`))
	if !ok || !validID(string(name)) {
		return "", nil, false
	}
	n := objectSize(rest)
	return string(name), rest[:n:n], n > 0 && len(rest) == n+1 && rest[n] == '}'
}

// objectSize is how long the JSON object is that b begins with, going by its brackets only; 0 where it is none, or not whole.
func objectSize(b []byte) int {
	if len(b) == 0 || b[0] != '{' {
		return 0
	}
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
		case '"':
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		}
	}
	return 0
}
