package quickjson

import (
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
)

func same(t *testing.T, v any, got []byte) {
	t.Helper()
	want, err := json.Marshal(v)
	if err != nil || string(got) != string(want) {
		t.Errorf("%s, want %s, %v", got, want, err)
	}
}

func TestWrite(t *testing.T) {
	for _, s := range []string{"", "a", "a b~", `"`, `\`, "<", ">", "&", "\x00", "\x1f", "\x7f", "\n", "ä", "\u2028", "\xff", "a\xc3"} {
		same(t, s, String(nil, s))
	}
	for _, v := range [][]byte{nil, {}, {0}, {1, 2, 3, 4}} {
		same(t, v, Bytes(nil, v))
	}
	for _, v := range []int64{0, -1, math.MaxInt64, math.MinInt64} {
		same(t, v, Int(nil, v))
	}
	same(t, uint64(math.MaxUint64), Uint(nil, uint64(math.MaxUint64)))
	same(t, true, Bool(nil, true))
	same(t, map[string]int{"a": 1, "b": 2}, append(Int(Key(Int(Key([]byte("{"), "a"), 1), "b"), 2), '}'))
	now := time.Now()
	for _, v := range []time.Time{{}, now, now.UTC(), now.Round(time.Second), time.Unix(0, 1).In(time.FixedZone("", 3600+17)),
		time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC), now.In(time.FixedZone("", 24*3600)),
		now.In(time.FixedZone("", -24*3600)), now.In(time.FixedZone("", 24*3600-1))} {
		got, ok := Time(nil, v)
		if want, err := json.Marshal(v); (err == nil) != ok || ok && string(got) != string(want) {
			t.Errorf("%v: %s, want %s, %v", v, got, want, err)
		}
	}
}

type all struct {
	S string            `json:"s"`
	L []string          `json:"l"`
	M map[string]string `json:"m"`
	B []byte            `json:"b"`
	T bool              `json:"t"`
	I int               `json:"i"`
	U uint64            `json:"u"`
	V uint32            `json:"v"`
	O any               `json:"o"`
}

func (v *all) read(b []byte) bool {
	r := NewReader(b)
	r.Object(func(name []byte) {
		switch string(name) {
		case "s":
			v.S = r.String()
		case "l":
			v.L = r.Strings()
		case "m":
			if v.M != nil { // a second one: see the package's comment
				r.Refuse()
			}
			v.M = r.Map()
		case "b":
			v.B = r.Bytes()
		case "t":
			v.T = r.Bool()
		case "i":
			v.I = r.Int()
		case "u":
			v.U = r.Uint64()
		case "v":
			v.V = r.Uint32()
		case "o":
			r.Field(name, v)
		default:
			r.Refuse()
		}
	})
	return r.Done()
}

var bodies = map[string]bool{ // whether it is understood
	`{}`:                                 true,
	`{"s":"a"}`:                          true,
	`{"s":""}`:                           true,
	`{"s":"ä"}`:                          true,
	`{"s":"\u0026\"\\\n"}`:               true,
	`{"s":"\\"}`:                         true,
	`{"s":"\"}`:                          false,
	`{"s":"\q"}`:                         false,
	`{"s":"` + "\n" + `"}`:               false,
	`{"s":"` + "\xff" + `"}`:             true,
	`{"s":null}`:                         false,
	`{"s":1}`:                            false,
	`{"l":["a","b"]}`:                    true,
	`{"l":[]}`:                           true,
	`{"l":null}`:                         true,
	`{"l":["a",]}`:                       false,
	`{"l":["a" "b"]}`:                    false,
	`{"l":["a"}`:                         false,
	`{"l":[1]}`:                          false,
	`{"m":{"a":"b","c":"d"}}`:            true,
	`{"m":{"a":"b",}}`:                   false,
	`{"m":{}}`:                           true,
	`{"m":null}`:                         true,
	`{"m":{"a\u0062":"c"}}`:              false,
	`{"m":{"a":1}}`:                      false,
	`{"m":{"a":"1"},"m":{"b":"2"}}`:      false,
	`{"b":"AQID"}`:                       true,
	`{"b":""}`:                           true,
	`{"b":null}`:                         true,
	`{"b":"AQI"}`:                        false,
	`{"b":"\u0041QID"}`:                  false,
	`{"t":true}`:                         true,
	`{"t":false}`:                        true,
	`{"t":null}`:                         false,
	`{"t":truer}`:                        false,
	`{"i":0}`:                            true,
	`{"i":-17}`:                          true,
	`{"i":-0}`:                           true,
	`{"i":007}`:                          false,
	`{"i":-}`:                            false,
	`{"i":1.0}`:                          false,
	`{"i":1e3}`:                          false,
	`{"i":9223372036854775807}`:          true,
	`{"i":9223372036854775808}`:          false,
	`{"u":18446744073709551615}`:         true,
	`{"u":-1}`:                           false,
	`{"v":4294967295}`:                   true,
	`{"v":4294967296}`:                   false,
	`{"o":{"a":["]}\"",1,null],"b":{}}}`: true,
	`{"o":12}`:                           true,
	`{"o":[[],[1,2]]}`:                   true,
	`{"o":"x","i":1}`:                    true,
	`{"o":nil}`:                          false,
	`{"o":}`:                             false,
	`{"o":[1,2}`:                         false,
	`{"o":[1 2]}`:                        false,
	`{"o":{"a":1],"i":2}`:                false,
	`{"i":1}{"i":2}`:                     false,
	`{"i":1} `:                           false,
	`{ "i":1}`:                           false,
	`{"i":1`:                             false,
	`{"i"`:                               false,
	`{"i":`:                              false,
	`{"x":1}`:                            false,
	`{"I":1}`:                            false,
	`{,"i":1}`:                           false,
	`{"i":1,"i":2}`:                      true,
	`[]`:                                 false,
	``:                                   false,
}

// What is understood is what encoding/json understands.
func check(t *testing.T, body string) bool {
	t.Helper()
	var got, want all
	ok := got.read([]byte(body))
	if err := json.Unmarshal([]byte(body), &want); ok && (err != nil || !reflect.DeepEqual(got, want)) {
		t.Errorf("%s: %+v, want %+v, %v", body, got, want, err)
	}
	return ok
}

func TestRead(t *testing.T) {
	for body, want := range bodies {
		if ok := check(t, body); ok != want {
			t.Errorf("%s: %v", body, ok)
		}
	}
	r := NewReader([]byte(strings.Repeat("[", 100)))
	if b := r.Skip(); b != nil || r.Done() {
		t.Errorf("skipped %s", b)
	}
}

func FuzzRead(f *testing.F) {
	for body := range bodies {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) { check(t, body) })
}
