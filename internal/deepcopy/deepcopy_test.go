package deepcopy

import (
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type sample struct {
	S     string
	P     *int
	N     *sample
	L     []string
	E     []string // empty, not nil
	B     []byte
	M     map[string][]string
	A     [2]string
	T     time.Time
	Addrs []netip.Addr
	Proto *runtimeapi.PodSandboxMetadata
	None  *runtimeapi.PodSandboxMetadata
	F     func()
}

func TestOf(t *testing.T) {
	n := 5
	v := &sample{
		S: "s", P: &n, N: &sample{S: "s"}, L: []string{"a", "s", ""}, E: []string{}, B: []byte{1}, M: map[string][]string{"s": {"x"}, "n": nil},
		A: [2]string{"a", "b"}, T: time.Unix(5, 6), Addrs: []netip.Addr{netip.MustParseAddr("fe80::1%eth0")},
		Proto: &runtimeapi.PodSandboxMetadata{Name: "s", Attempt: 1},
	}
	var c Copier
	next, err := Of(&c, v)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(v, next, protocmp.Transform(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("differs:\n%s", d)
	}
	data := func(s string) *byte { return unsafe.StringData(s) }
	if next.P == v.P || next.N == v.N || &next.L[0] == &v.L[0] || &next.B[0] == &v.B[0] || next.Proto == v.Proto || data(next.S) == data(v.S) ||
		data(next.Proto.Name) == data(v.Proto.Name) {
		t.Error("shares memory with what it is a copy of")
	}
	if data(next.S) != data(next.N.S) || data(next.S) != data(next.L[1]) {
		t.Error("equal strings are not shared")
	}
	next.M["s"][0] = "y"
	next.Proto.Name = "changed"
	if v.M["s"][0] != "x" || v.Proto.Name != "s" {
		t.Error("a change of the copy reached the original")
	}
	bad := &sample{Proto: &runtimeapi.PodSandboxMetadata{Name: "\xff"}}
	if _, err := Of(&c, bad); err == nil {
		t.Error("a message that is not UTF-8 has no wire form")
	}
}
