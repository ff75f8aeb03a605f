package testnode

import (
	"slices"
	"testing"
)

func TestAdded(t *testing.T) {
	before := Snapshot{"mount a": true, "cgroup /no/such/cri-old": true}
	after := Snapshot{"mount a": true, "mount b": true, "cgroup /no/such/cri-old": true, "cgroup /no/such/cri-new": true}
	if got, want := before.Added(after), []string{"cgroup /no/such/cri-new", "mount b"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := Still([]string{"a", "b"}, []string{"b", "c"}); !slices.Equal(got, []string{"b"}) {
		t.Errorf("%q", got)
	}
	if got := Still(nil, []string{"b"}); len(got) != 0 {
		t.Errorf("%q", got)
	}
}
