package nat

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

func TestMain(m *testing.M) { testns.Main(m) }

func ruleset(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v %s", err, out)
	}
	return string(out)
}

func flush(t testing.TB) {
	t.Helper()
	if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
		t.Fatalf("nft: %v %s", err, out)
	}
}

var (
	alice = Owner{ContainerID: strings.Repeat("a", 64), IfName: "eth0", Network: "n", Pod: "ns/alice"}
	bob   = Owner{ContainerID: strings.Repeat("b", 64), IfName: "eth0", Network: "n", Pod: "ns/bob"}
)

func TestMasquerade(t *testing.T) {
	testns.Root(t)
	defer flush(t)
	table := New()
	addrs := []netip.Prefix{netip.MustParsePrefix("10.1.0.5/16"), netip.MustParsePrefix("fd00::5/64")}
	for range 2 { // idempotent
		if err := table.Masquerade(alice, addrs); err != nil {
			t.Fatal(err)
		}
	}
	if s := ruleset(t); !strings.Contains(s, "ip daddr != 10.1.0.0/16 masquerade") || !strings.Contains(s, "ip6 daddr != fd00::/64 masquerade") ||
		strings.Count(s, "comment \""+alice.ContainerID) != 2 {
		t.Error(s)
	}
	// Bob is given Alice's address, with another mask: it is his, and Alice's late release doesn't take it.
	if err := table.Masquerade(bob, []netip.Prefix{netip.MustParsePrefix("10.1.0.5/24")}); err != nil {
		t.Fatal(err)
	}
	if err := table.Unmasquerade(alice, []netip.Addr{netip.MustParseAddr("10.1.0.5"), netip.MustParseAddr("fd00::5")}); err != nil {
		t.Fatal(err)
	}
	if s := ruleset(t); strings.Contains(s, alice.ContainerID) || !strings.Contains(s, bob.ContainerID) {
		t.Error(s)
	}
	if err := table.Unmasquerade(bob, nil); err != nil {
		t.Fatal(err)
	}
	if err := table.GC(func(Owner) bool { return true }); err != nil {
		t.Fatal(err)
	}
	if s := ruleset(t); strings.Contains(s, bob.ContainerID) || strings.Contains(s, "masq-") {
		t.Error(s)
	}
}

func TestFlushedRuleset(t *testing.T) {
	testns.Root(t)
	defer flush(t)
	table := New()
	addrs := []netip.Prefix{netip.MustParsePrefix("10.1.0.5/16")}
	if err := table.Masquerade(alice, addrs); err != nil {
		t.Fatal(err)
	}
	flush(t)
	if err := table.Unmasquerade(alice, nil); err != nil {
		t.Error(err)
	}
	if err := table.Unforward(alice, nil); err != nil {
		t.Error(err)
	}
	if err := table.Masquerade(alice, addrs); err != nil {
		t.Errorf("the table was not made again: %v", err)
	}
}

// Once table and subnet are known, a pod's elements come and go without the library, in the same form.
func TestDirect(t *testing.T) {
	testns.Root(t)
	defer flush(t)
	table, other := New(), New()
	defer table.Close()
	defer other.Close()
	pods := func(last string) []netip.Prefix {
		return []netip.Prefix{netip.MustParsePrefix("10.1.0." + last + "/16"), netip.MustParsePrefix("fd00::" + last + "/64")}
	}
	addrs := func(last string) []netip.Addr { return []netip.Addr{pods(last)[0].Addr(), pods(last)[1].Addr()} }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	count := func(o Owner, want int) {
		t.Helper()
		if s := ruleset(t); strings.Count(s, `comment "`+o.comment()+`" : goto masq-`) != want {
			t.Errorf("%s has not %d elements:\n%s", o.Pod, want, s)
		}
	}
	must(table.Masquerade(alice, pods("5")))
	must(table.addMasqueraded(bob, pods("6")))
	count(alice, 2)
	count(bob, 2)
	if err := table.addMasqueraded(alice, append(pods("7"), pods("6")...)); err != unix.EEXIST {
		t.Errorf("an address that is taken: %v", err)
	}
	count(alice, 2) // nothing of it was done
	must(table.Masquerade(alice, pods("7")))
	count(alice, 4)
	if err := table.deleteMasqueraded(append(addrs("7"), addrs("8")...)); err != unix.ENOENT {
		t.Errorf("an address that is not there: %v", err)
	}
	count(alice, 4)
	must(table.Unmasquerade(alice, addrs("7")))
	must(table.Unmasquerade(alice, addrs("7"))) // idempotent
	must(table.Unmasquerade(alice, addrs("6"))) // not hers
	count(alice, 2)
	count(bob, 2)

	must(other.Masquerade(bob, pods("5"))) // of another process
	must(table.Masquerade(alice, pods("5")))
	count(alice, 2)
	must(table.Unmasquerade(bob, addrs("5")))
	count(alice, 2)
	flush(t)
	must(table.Unmasquerade(alice, addrs("5")))
	if err := table.addMasqueraded(bob, pods("6")); err != unix.ENOENT {
		t.Errorf("without a table: %v", err)
	}
	must(table.Masquerade(bob, pods("6")))
	count(bob, 2)
	must(table.Unmasquerade(bob, addrs("6")))
	count(bob, 0)
}

func mapping(proto, host, to string) Mapping {
	m := Mapping{Protocol: proto, To: netip.MustParseAddrPort(to)}
	h := netip.MustParseAddrPort(host)
	m.HostPort = h.Port()
	if !h.Addr().IsUnspecified() {
		m.HostIP = h.Addr()
	}
	return m
}

func TestForwardConflicts(t *testing.T) {
	testns.Root(t)
	for _, tc := range []struct {
		name       string
		have, want Mapping
		conflict   bool
	}{
		{"same port", mapping("tcp", "0.0.0.0:80", "10.1.0.5:8080"), mapping("tcp", "0.0.0.0:80", "10.1.0.6:80"), true},
		{"other protocol", mapping("tcp", "0.0.0.0:80", "10.1.0.5:8080"), mapping("udp", "0.0.0.0:80", "10.1.0.6:80"), false},
		{"other port", mapping("tcp", "0.0.0.0:80", "10.1.0.5:8080"), mapping("tcp", "0.0.0.0:81", "10.1.0.6:80"), false},
		{"other address", mapping("tcp", "192.0.2.1:80", "10.1.0.5:8080"), mapping("tcp", "192.0.2.2:80", "10.1.0.6:80"), false},
		{"same address", mapping("tcp", "192.0.2.1:80", "10.1.0.5:8080"), mapping("tcp", "192.0.2.1:80", "10.1.0.6:80"), true},
		{"all, then one", mapping("sctp", "0.0.0.0:80", "10.1.0.5:8080"), mapping("sctp", "192.0.2.1:80", "10.1.0.6:80"), true},
		{"one, then all", mapping("tcp", "192.0.2.1:80", "10.1.0.5:8080"), mapping("tcp", "0.0.0.0:80", "10.1.0.6:80"), true},
		{"other family", mapping("tcp", "0.0.0.0:80", "10.1.0.5:8080"), mapping("tcp", "[::]:80", "[fd00::6]:80"), false},
		{"same, IPv6", mapping("udp", "[2001:db8::1]:80", "[fd00::5]:80"), mapping("udp", "[::]:80", "[fd00::6]:80"), true},
		{"left by a former pod of the address", mapping("tcp", "0.0.0.0:80", "10.1.0.6:8080"), mapping("tcp", "0.0.0.0:80", "10.1.0.6:80"), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			defer flush(t)
			table := New()
			if err := table.Forward(alice, []Mapping{tc.have, tc.have}, true); err != nil {
				t.Fatal(err)
			}
			if err := table.Forwarded(alice, []Mapping{tc.have}); err != nil {
				t.Error(err)
			}
			err := table.Forward(bob, []Mapping{tc.want}, true)
			if !tc.conflict {
				if err != nil {
					t.Error(err)
				}
				if err := table.Forwarded(bob, []Mapping{tc.want}); err != nil {
					t.Error(err)
				}
				return
			}
			if !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), "pod ns/alice") {
				t.Errorf("conflict: %v", err)
			}
			if strings.Contains(ruleset(t), bob.ContainerID) {
				t.Error("something was left behind")
			}
			for _, maps := range [][]Mapping{{}, {tc.want}} { // what it doesn't name, and what isn't its
				if err := table.Unforward(bob, maps); err != nil || !strings.Contains(ruleset(t), alice.ContainerID) {
					t.Errorf("another's mapping is gone: %v", err)
				}
			}
			if err := table.Unforward(alice, []Mapping{tc.have}); err != nil || strings.Contains(ruleset(t), alice.ContainerID) {
				t.Errorf("something is left: %v %s", err, ruleset(t))
			}
			if err := table.Unforward(alice, nil); err != nil {
				t.Error(err)
			}
			if err := table.Forward(bob, []Mapping{tc.want}, true); err != nil {
				t.Errorf("after release: %v", err)
			}
		})
	}
	if err := New().Forward(alice, []Mapping{mapping("icmp", "0.0.0.0:1", "10.0.0.1:1")}, false); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad protocol: %v", err)
	}
}

func TestGC(t *testing.T) {
	testns.Root(t)
	defer flush(t)
	table := New()
	for i, o := range []Owner{alice, bob} {
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(5 + i)}), 80)
		if err := table.Forward(o, []Mapping{{Protocol: "tcp", HostPort: uint16(80 + i), To: to}}, true); err != nil {
			t.Fatal(err)
		}
		if err := table.Masquerade(o, []netip.Prefix{netip.PrefixFrom(to.Addr(), 16)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := table.GC(func(o Owner) bool { return o.ContainerID == bob.ContainerID && o.Network == "n" && o.Pod == "ns/bob" }); err != nil {
		t.Fatal(err)
	}
	if s := ruleset(t); strings.Contains(s, alice.ContainerID) || strings.Count(s, bob.ContainerID) != 4 || !strings.Contains(s, "masq-10.1.0.0-16") {
		t.Error(s)
	}
}

func TestOwner(t *testing.T) {
	long := Owner{ContainerID: alice.ContainerID, IfName: "eth0", Network: "n", Pod: strings.Repeat("p", 400)}
	o, ok := parseOwner(long.comment())
	if !ok || !long.is(long.comment()) || o.ContainerID != long.ContainerID || len(long.comment()) > maxComment {
		t.Errorf("%v %v", o, ok)
	}
	if alice.is(bob.comment()) || (Owner{ContainerID: "a", IfName: "eth0", Network: "n"}).is("a eth0 n2 x") {
		t.Error("owners are mixed up")
	}
	if _, ok := parseOwner("made by hand"); !ok {
		t.Log("three words read as an owner")
	}
	if _, ok := parseOwner("by hand"); ok {
		t.Error("a foreign comment reads as an owner")
	}
}

func BenchmarkMasquerade(b *testing.B) {
	testns.Root(b)
	defer flush(b)
	table := New()
	for i := 0; b.Loop(); i++ {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 16)
		if err := table.Masquerade(alice, []netip.Prefix{p}); err != nil {
			b.Fatal(err)
		}
		if i%2 == 0 {
			if err := table.Unmasquerade(alice, []netip.Addr{p.Addr()}); err != nil {
				b.Fatal(err)
			}
		}
	}
}
