package monitor

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the state of the present version anew")

// savedFixture is the state that a cri-monitor of version 1 gives to the next one, with something in each field. It stays as
// it is when the version is raised: then it shows what an upgrade from the older one needs.
const savedFixture = "testdata/saved-v1.json"

// savedAll is the state with its containers, which are JSON within it.
type savedAll struct {
	Server    savedServer    `json:"server"`
	Container savedContainer `json:"container"`
	Kept      kept           `json:"kept"`
}

// TestSavedFields: each field that version 1 has written is still read, and into what it was.
func TestSavedFields(t *testing.T) {
	if *update {
		var v savedAll
		fill(reflect.ValueOf(&v).Elem(), new(int))
		b, err := json.MarshalIndent(&v, "", " ")
		if err == nil {
			err = os.WriteFile(savedFixture, append(b, '\n'), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(savedFixture)
	if err != nil {
		t.Fatal(err)
	}
	var v savedAll
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("a field of version 1 is not read any more: %v", err)
	}
	again, err := json.Marshal(&v)
	if err != nil {
		t.Fatal(err)
	}
	var before, after any
	if err := json.Unmarshal(b, &before); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(again, &after); err != nil {
		t.Fatal(err)
	}
	if diff := missing("", before, after); len(diff) > 0 {
		t.Errorf("lost or changed: %q", diff)
	}
}

// missing are the paths of what is in before, and is not in after or is something else there.
func missing(path string, before, after any) (paths []string) {
	switch b := before.(type) {
	case map[string]any:
		a, _ := after.(map[string]any)
		for k, v := range b {
			paths = append(paths, missing(path+"."+k, v, a[k])...)
		}
	case []any:
		a, _ := after.([]any)
		for i, v := range b {
			if i >= len(a) {
				return append(paths, path)
			}
			paths = append(paths, missing(path, v, a[i])...)
		}
	default:
		if !cmp.Equal(before, after) {
			paths = append(paths, path)
		}
	}
	return paths
}

// fill puts something into each field, each time something else.
func fill(v reflect.Value, n *int) {
	*n++
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(int64(*n), int64(*n)).UTC()))
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() || v.Type().Field(i).Anonymous {
				fill(v.Field(i), n)
			}
		}
	case reflect.Slice:
		if v.Type() == reflect.TypeFor[json.RawMessage]() {
			v.Set(reflect.ValueOf(json.RawMessage(`{"of":"another type"}`)))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), n)
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), n)
		}
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, n)
		fill(value, n)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.String:
		v.SetString(time.Duration(*n).String())
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(*n % 100))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n % 100))
	}
}

// TestHeaders: what this program goes on with, and what it refuses before anything was given up.
func TestHeaders(t *testing.T) {
	for name, tt := range map[string]struct {
		header string
		is     func(error) bool
	}{
		"this version":   {`{"version":1,"build":"v1"}`, func(err error) bool { return err == nil }},
		"unknown fields": {`{"version":1,"build":"v1","since":[1,{}]}`, func(err error) bool { return err == nil }},
		"the newest":     {fmt.Sprintf(`{"version":%d}`, savedVersion), func(err error) bool { return err == nil }},
		"newer":          {fmt.Sprintf(`{"version":%d,"build":"v9"}`, savedVersion+1), errdefs.IsNotImplemented},
		"older than all": {`{"version":0}`, errdefs.IsNotImplemented},
		"none":           {`{}`, errdefs.IsNotImplemented},
		"garbage":        {`{"version":"x"}`, errdefs.IsDataLoss},
		"empty":          {``, errdefs.IsDataLoss},
	} {
		if err := CheckHeader([]byte(tt.header)); !tt.is(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
