package monitor

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

// Whatever way a picture is read, it is the same.
func TestCutKept(t *testing.T) {
	for body, cut := range map[string]bool{
		`{"id":"a","data":{"b":[1,{"c":"}\"]\\"}],"d":"\\"}}`: true,
		`{"id":"a","data":{}}`:                                true,
		`{"id":"a","data":{"b":1},"still":true}`:              false,
		`{"id":"a","data":{"b":1}} `:                          false,
		`{"id":"a","data":null}`:                              false,
		`{"id":"a","data":[]}`:                                false,
		`{"id":"a","forget":true}`:                            false,
		`{"id":"a\u0062","data":{}}`:                          false,
		`{"id":"/journal/1","data":{}}`:                       false,
		`{"data":{},"id":"a"}`:                                false,
		`{"journal":true}`:                                    false,
		`{"id":"a","data":{"b":"}}`:                           false,
		`{"id":"a","data":{"b":1}`:                            false,
		`{"id":"a","data":{"b":"\`:                            false,
		`{"id":"a","data":`:                                   false,
		`{"id":"a"`:                                           false,
		``:                                                    false,
	} {
		id, data, ok := cutKept([]byte(body))
		if ok != cut {
			t.Errorf("%s: %v, want %v", body, ok, cut)
		}
		var want kept
		err := json.Unmarshal([]byte(body), &want)
		if ok && (err != nil || id != want.ID || string(data) != string(want.Data)) {
			t.Errorf("%s: %q %q, want %+v, %v", body, id, data, want, err)
		}
		got, gotErr := (&frame{body: []byte(body)}).kept()
		if (err == nil) != (gotErr == nil) || err == nil && !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v %v, want %+v %v", body, got, gotErr, want, err)
		}
	}
}

func TestValidID(t *testing.T) {
	for id, want := range map[string]bool{
		"a": true, "0": true, "a_.-b": true, strings.Repeat("a", 128): true,
		"": false, "A": false, "_a": false, ".": false, "..": false, "-a": false, "a/b": false, "a\x00": false, "ä": false,
		strings.Repeat("a", 129): false,
	} {
		if got := validID(id); got != want {
			t.Errorf("%q: %v", id, got)
		}
	}
}
