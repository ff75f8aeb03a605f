package quickjson

import (
	"encoding/base64"
	"encoding/json"
	"strconv"
	"time"
)

// String appends s.
func String(b []byte, s string) []byte {
	for i := range len(s) {
		if !plain(s[i]) {
			text, _ := json.Marshal(s) // of a string there is always one
			return append(b, text...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// plain tells whether encoding/json writes c as it is.
func plain(c byte) bool {
	return c >= ' ' && c < 0x80 && c != '"' && c != '\\' && c != '<' && c != '>' && c != '&'
}

// Bytes appends v as base64, null for nil.
func Bytes(b, v []byte) []byte {
	if v == nil {
		return append(b, "null"...)
	}
	b = append(b, '"')
	b = base64.StdEncoding.AppendEncode(b, v)
	return append(b, '"')
}

// Time appends t; false where it has none in JSON.
func Time(b []byte, t time.Time) ([]byte, bool) {
	b = append(b, '"')
	at := len(b)
	b = t.AppendFormat(b, time.RFC3339Nano)
	// RFC 3339 has years of four digits and zones of less than a day, see time.Time.MarshalJSON.
	_, offset := t.Zone()
	return append(b, '"'), b[at+len("9999")] == '-' && offset > -24*3600 && offset < 24*3600
}

// Int appends v.
func Int[T ~int | ~int64](b []byte, v T) []byte { return strconv.AppendInt(b, int64(v), 10) }

// Uint appends v.
func Uint[T ~uint | ~uint32 | ~uint64](b []byte, v T) []byte {
	return strconv.AppendUint(b, uint64(v), 10)
}

// Bool appends v.
func Bool(b []byte, v bool) []byte { return strconv.AppendBool(b, v) }

// Key appends what comes before the value of a field, with a comma unless it is the first of its object.
func Key(b []byte, name string) []byte {
	if n := len(b); n > 0 && b[n-1] != '{' {
		b = append(b, ',')
	}
	b = append(b, '"')
	b = append(b, name...) // plain, as names of fields are
	return append(b, '"', ':')
}
