package monitor

import (
	"encoding/json"
	"reflect"
	"testing"
)

func TestKeptJSON(t *testing.T) {
	for _, in := range []kept{
		{}, {Synced: true}, {ID: "a", Forget: true}, {Data: json.RawMessage(`{"b":[1]}`)},
		{ID: "a", Data: json.RawMessage(`{"b":"}"}`)}, {Journal: true, Data: json.RawMessage(`null`)},
	} {
		b, err := marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		var out kept
		if err := json.Unmarshal(b, &out); err != nil || string(out.Data) != string(in.Data) {
			t.Errorf("%s: %v, data %s", b, err, out.Data)
		}
		if out.Data, in.Data = nil, nil; !reflect.DeepEqual(in, out) {
			t.Errorf("%s: %+v, want %+v", b, out, in)
		}
	}
}
