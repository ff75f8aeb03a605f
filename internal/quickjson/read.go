package quickjson

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"math"
	"strconv"
	"unicode/utf8"
)

// Reader reads one value from its beginning to its end. After the first thing that it does not understand it gives zero values,
// and Done is false.
type Reader struct {
	rest []byte
	bad  bool
}

// NewReader reads b, which must not change meanwhile. What is read has none of b's memory.
func NewReader(b []byte) *Reader { return &Reader{rest: b} }

// Done tells whether all was read and understood.
func (r *Reader) Done() bool { return !r.bad && len(r.rest) == 0 }

// Refuse says that the caller does not understand what it was given.
func (r *Reader) Refuse() { r.bad, r.rest = true, nil }

func (r *Reader) take(c byte) bool {
	if len(r.rest) == 0 || r.rest[0] != c {
		return false
	}
	r.rest = r.rest[1:]
	return true
}

func (r *Reader) literal(s string) bool {
	if len(r.rest) < len(s) || string(r.rest[:len(s)]) != s {
		return false
	}
	r.rest = r.rest[len(s):]
	return true
}

// Object calls field for each field, which is to read the value. The name is valid until then.
func (r *Reader) Object(field func(name []byte)) {
	if !r.take('{') {
		r.Refuse()
		return
	}
	for n := 0; !r.bad && !r.take('}'); n++ {
		if n > 0 && !r.take(',') {
			r.Refuse()
			return
		}
		name, ok := r.text()
		if !ok || bytes.IndexByte(name, '\\') >= 0 || !r.take(':') {
			r.Refuse()
			return
		}
		field(name)
	}
}

// Array calls element for each element, which is to read it.
func (r *Reader) Array(element func()) {
	if !r.take('[') {
		r.Refuse()
		return
	}
	for n := 0; !r.bad && !r.take(']'); n++ {
		if n > 0 && !r.take(',') {
			r.Refuse()
			return
		}
		element()
	}
}

// text is what stands between the next two quotation marks.
func (r *Reader) text() ([]byte, bool) {
	if !r.take('"') {
		return nil, false
	}
	for i := 0; i < len(r.rest); i++ {
		switch c := r.rest[i]; {
		case c == '"':
			text := r.rest[:i]
			r.rest = r.rest[i+1:]
			return text, true
		case c == '\\':
			i++
		case c < ' ':
			return nil, false
		}
	}
	return nil, false
}

// String reads a string.
func (r *Reader) String() string {
	from := r.rest
	text, ok := r.text()
	if !ok {
		r.Refuse()
		return ""
	}
	if bytes.IndexByte(text, '\\') < 0 && utf8.Valid(text) {
		return string(text)
	}
	var s string
	if json.Unmarshal(from[:len(text)+2], &s) != nil {
		r.Refuse()
	}
	return s
}

// Strings reads an array of strings; it is nil for null only.
func (r *Reader) Strings() []string {
	if r.literal("null") {
		return nil
	}
	list := []string{}
	r.Array(func() { list = append(list, r.String()) })
	return list
}

// Map reads an object of strings; it is nil for null only.
func (r *Reader) Map() map[string]string {
	if r.literal("null") {
		return nil
	}
	m := map[string]string{}
	r.Object(func(name []byte) {
		if !utf8.Valid(name) {
			r.Refuse()
		}
		m[string(name)] = r.String()
	})
	return m
}

// Bytes reads base64; it is nil for null only.
func (r *Reader) Bytes() []byte {
	if r.literal("null") {
		return nil
	}
	text, ok := r.text()
	if !ok {
		r.Refuse()
		return nil
	}
	b := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Decode(b, text)
	if err != nil {
		r.Refuse()
	}
	return b[:n]
}

// Bool reads true or false.
func (r *Reader) Bool() bool {
	if r.literal("true") {
		return true
	}
	if !r.literal("false") {
		r.Refuse()
	}
	return false
}

// number is the integer that comes next.
func (r *Reader) number() string {
	n := 0
	for n < len(r.rest) && (r.rest[n] >= '0' && r.rest[n] <= '9' || n == 0 && r.rest[n] == '-') {
		n++
	}
	text := string(r.rest[:n])
	if digits := bytes.TrimPrefix(r.rest[:n], []byte("-")); len(digits) > 1 && digits[0] == '0' {
		text = "" // no number in JSON
	}
	r.rest = r.rest[n:] // where it has a fraction, what comes next is not understood
	return text
}

// Int reads an integer.
func (r *Reader) Int() int {
	v, err := strconv.ParseInt(r.number(), 10, strconv.IntSize)
	if err != nil {
		r.Refuse()
	}
	return int(v)
}

// Uint64 reads an integer that is not negative.
func (r *Reader) Uint64() uint64 {
	v, err := strconv.ParseUint(r.number(), 10, 64)
	if err != nil {
		r.Refuse()
	}
	return v
}

// Uint32 reads an integer of 32 bits that is not negative.
func (r *Reader) Uint32() uint32 {
	v := r.Uint64()
	if v > math.MaxUint32 {
		r.Refuse()
	}
	return uint32(v)
}

// Skip returns the value that comes next, of which only the brackets are looked at.
func (r *Reader) Skip() []byte {
	from, depth := r.rest, 0
	for !r.bad {
		switch {
		case len(r.rest) == 0:
			r.Refuse()
			return nil
		case r.rest[0] == '"':
			if _, ok := r.text(); !ok {
				r.Refuse()
				return nil
			}
		case r.rest[0] == '{' || r.rest[0] == '[':
			depth++
			r.rest = r.rest[1:]
			continue
		case r.rest[0] == '}' || r.rest[0] == ']':
			if depth--; depth < 0 {
				r.Refuse()
				return nil
			}
			r.rest = r.rest[1:]
		case r.rest[0] == ',' || r.rest[0] == ':':
			if depth == 0 {
				r.Refuse()
				return nil
			}
			r.rest = r.rest[1:]
			continue
		default: // a number, or a word
			n := bytes.IndexAny(r.rest, `,]}`)
			if n < 0 {
				n = len(r.rest)
			}
			r.rest = r.rest[n:]
		}
		if depth == 0 {
			return from[:len(from)-len(r.rest)]
		}
	}
	return nil
}

// Field has encoding/json read one field of the struct that v points to, whose value comes next.
func (r *Reader) Field(name []byte, v any) {
	value := r.Skip()
	if r.bad {
		return
	}
	b := make([]byte, 0, len(name)+len(value)+5)
	b = append(append(append(b, '{', '"'), name...), '"', ':')
	b = append(append(b, value...), '}')
	if json.Unmarshal(b, v) != nil {
		r.Refuse()
	}
}
