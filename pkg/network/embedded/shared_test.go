package embedded

import (
	"net/netip"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

func TestSettled(t *testing.T) {
	a, b := netip.MustParsePrefix("10.77.0.1/24"), netip.MustParsePrefix("fd00::1/64")
	var s shared
	if !s.settled(1, nil) || s.settled(1, []netip.Prefix{a}) {
		t.Error("at first")
	}
	s.settle(1, []netip.Prefix{a})
	if !s.settled(1, []netip.Prefix{a}) || s.settled(2, []netip.Prefix{a}) || s.settled(1, []netip.Prefix{a, b}) {
		t.Error("one address of one bridge")
	}
	s.unsettle(1, []netip.Prefix{b, a})
	if s.settled(1, []netip.Prefix{a}) {
		t.Error("taken back")
	}
	for i := range 10 * maxSettled {
		s.settle(i, []netip.Prefix{a, b})
		if len(s.done) > maxSettled+1 || !s.settled(i, []netip.Prefix{b, a}) {
			t.Fatalf("%d remembered after %d", len(s.done), i)
		}
	}
}

// A gateway address that was settled costs a pod no waiting for others; one that has gone since is looked into like a new one.
func TestGatewaySettled(t *testing.T) {
	testns.Root(t)
	p := New(t.TempDir(), nil)
	defer p.Close()
	ip(t, "link", "add", "settled0", "type", "bridge")
	defer ip(t, "link", "del", "settled0")
	ip(t, "link", "add", "veth00c0ffee", "type", "veth", "peer", "name", "settled1")
	defer ip(t, "link", "del", "veth00c0ffee")
	br, err := netlink.LinkByName("settled0")
	if err != nil {
		t.Fatal(err)
	}
	port, err := netlink.LinkByName("veth00c0ffee")
	if err != nil {
		t.Fatal(err)
	}
	d, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	ensure := func(conf bridgeConf) error {
		_, _, err := p.gatewayAddrs(d, &conf, br.Attrs().Index, port.Attrs().Index, []netip.Prefix{netip.MustParsePrefix("10.77.0.1/24")})
		return err
	}
	has := func(want ...string) {
		t.Helper()
		list, err := netlink.AddrList(br, netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		for i := range list {
			if len(list) != len(want) || list[i].IPNet.String() != want[i] {
				t.Fatalf("the bridge has %v, not %v", list, want)
			}
		}
		if len(list) != len(want) {
			t.Fatalf("the bridge has nothing, not %v", want)
		}
	}
	if err := ensure(bridgeConf{conf: &conf{}}); err != nil {
		t.Fatal(err)
	}
	has("10.77.0.1/24")

	p.shared.mu.Lock() // another is under way
	done := make(chan error, 1)
	go func() { done <- ensure(bridgeConf{conf: &conf{}}) }()
	select {
	case err = <-done:
		p.shared.mu.Unlock()
	case <-time.After(10 * time.Second):
		p.shared.mu.Unlock()
		<-done
		t.Fatal("a pod waits for another's gateway")
	}
	if err != nil {
		t.Fatal(err)
	}

	ip(t, "addr", "del", "10.77.0.1/24", "dev", "settled0")
	if err := ensure(bridgeConf{conf: &conf{}}); err != nil {
		t.Error(err)
	}
	has("10.77.0.1/24")
	ip(t, "addr", "del", "10.77.0.1/24", "dev", "settled0")
	ip(t, "addr", "add", "10.78.0.1/24", "dev", "settled0")
	for range 2 {
		if err := ensure(bridgeConf{conf: &conf{}}); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("beside another: %v", err)
		}
		has("10.78.0.1/24")
	}
	if err := ensure(bridgeConf{conf: &conf{}, ForceAddress: true}); err != nil {
		t.Error(err)
	}
	has("10.77.0.1/24")
	ip(t, "link", "del", "settled0")
	if err := ensure(bridgeConf{conf: &conf{}}); err == nil {
		t.Error("on a bridge that has gone")
	}
	ip(t, "link", "add", "settled0", "type", "bridge")
}
