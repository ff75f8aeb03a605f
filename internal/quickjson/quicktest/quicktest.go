// Package quicktest checks code that writes or reads JSON without encoding/json against encoding/json. A field that was
// forgotten shows in it.
package quicktest

import (
	"encoding/json"
	"fmt"
	"reflect"
	"testing"
	"time"
)

// texts are what strings are filled with: plain ones, and such as encoding/json writes in a way of its own.
var texts = []string{"a", "/run/x y", `"\<&>`, "\x00\n\x7f", "ä\u2028", "bad\xff"}

// Fill sets all exported fields of *v, at any depth, to what is not zero, and not the same for all n; for 0 it sets nothing.
// Fields of type json.RawMessage get an object.
func Fill(v any, n int) {
	if n > 0 {
		f := filler{n: n}
		f.fill(reflect.ValueOf(v).Elem(), 0)
	}
}

type filler struct{ n int }

// maxDepth ends types that contain themselves.
const maxDepth = 12

func (f *filler) fill(v reflect.Value, depth int) {
	f.n++
	if !v.CanSet() || depth > maxDepth {
		return
	}
	switch v.Type() {
	case reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Unix(int64(f.n)*1e8, int64(f.n)*1e6+1).UTC()))
		return
	case reflect.TypeFor[json.RawMessage]():
		v.SetBytes(fmt.Appendf(nil, `{"n":%d,"x":["}\"]"]}`, f.n))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(texts[f.n%len(texts)] + "x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(f.n%100) + 1)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(f.n%200) + 1)
	case reflect.Float64:
		v.SetFloat(1.5)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		f.fill(v.Elem(), depth+1)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), f.n%2+1, f.n%2+1))
		for i := range v.Len() {
			f.fill(v.Index(i), depth+1)
		}
	case reflect.Array:
		for i := range v.Len() {
			f.fill(v.Index(i), depth+1)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range f.n%2 + 1 {
			key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			f.fill(key, depth+1)
			f.fill(value, depth+1)
			v.SetMapIndex(key, value)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).Tag.Get("json") != "-" {
				f.fill(v.Field(i), depth+1)
			}
		}
	}
}

// Written compares what was written of v with the JSON of v.
func Written(t *testing.T, v any, got []byte, err error) {
	t.Helper()
	want, wantErr := json.Marshal(v)
	if wantErr != nil {
		t.Fatal(wantErr)
	}
	if err != nil || string(got) != string(want) {
		t.Errorf("written\n%s\nwant\n%s\n%v", got, want, err)
	}
}
