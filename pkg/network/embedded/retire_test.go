package embedded

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
)

func ip(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestHostEnd(t *testing.T) {
	pod := &current.Interface{Name: "eth0", Mac: "02:00:00:00:00:01", Sandbox: "/run/netns/a"}
	host := &current.Interface{Name: "veth0123abcd", Mac: "02:00:00:00:00:02"}
	for name, tt := range map[string]struct {
		r    *current.Result
		want *current.Interface
	}{
		"no result":          {},
		"no interfaces":      {r: &current.Result{}},
		"bridge, veth":       {&current.Result{Interfaces: []*current.Interface{{Name: "cni0", Mac: "02:00:00:00:00:03"}, host, pod}}, host},
		"null":               {&current.Result{Interfaces: []*current.Interface{nil, host, pod}}, host},
		"another's":          {&current.Result{Interfaces: []*current.Interface{{Name: "eth1", Mac: host.Mac}, pod}}, nil},
		"no pod":             {&current.Result{Interfaces: []*current.Interface{host}}, nil},
		"another in the pod": {&current.Result{Interfaces: []*current.Interface{host, {Name: "eth1", Sandbox: pod.Sandbox}}}, nil},
		"two":                {&current.Result{Interfaces: []*current.Interface{host, host, pod}}, nil},
		"no address":         {&current.Result{Interfaces: []*current.Interface{{Name: host.Name}, pod}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if got := hostEnd(tt.r, "eth0"); got != tt.want {
				t.Errorf("%+v, not %+v", got, tt.want)
			}
		})
	}
}

// A pod's port is useless from the moment that retire returns, whatever its bridge is like, and a link that is not the
// attachment's is left alone.
func TestRetire(t *testing.T) {
	testns.Root(t)
	group := fmt.Sprint("group ", deadGroup)
	for name, tt := range map[string]struct {
		setup []string // of ip
		mac   string   // in the result, else the link's
		lost  bool     // the result
		made  bool     // by this process
		useless,
		untouched string // what the host end shows then
	}{
		"port":                {useless: "state disabled"},
		"port, ours":          {made: true, useless: "state disabled"},
		"port, result lost":   {lost: true, useless: group},
		"STP":                 {setup: []string{"link", "set", "retire0", "type", "bridge", "stp_state", "1"}, useless: "state DOWN"},
		"no port any more":    {setup: []string{"link", "set", "veth00c0ffee", "nomaster"}, useless: "state DOWN"},
		"gone":                {setup: []string{"link", "del", "veth00c0ffee"}},
		"gone, ours":          {setup: []string{"link", "del", "veth00c0ffee"}, made: true},
		"renamed, ours":       {setup: []string{"link", "set", "veth00c0ffee", "name", "veth00c0ffef"}, made: true},
		"another of its name": {mac: "02:00:00:00:00:09", untouched: "group default"},
	} {
		t.Run(name, func(t *testing.T) {
			p := New(t.TempDir(), nil)
			p.reaper.close() // so that there is something to look at
			defer p.Close()
			ns, err := netns.Create("/run/netns", "cri-retire")
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := netns.Remove(ns); err != nil {
					t.Error(err)
				}
			}()
			netns.DropSocket(ns)
			ip(t, "link", "add", "retire0", "type", "bridge")
			defer ip(t, "link", "del", "retire0")
			ip(t, "link", "set", "retire0", "up")
			ip(t, "link", "add", "veth00c0ffee", "address", "02:00:00:00:00:02", "type", "veth", "peer", "name", "eth0", "netns", "cri-retire")
			defer func() { _ = exec.Command("ip", "link", "del", "veth00c0ffee").Run() }()
			ip(t, "link", "set", "veth00c0ffee", "master", "retire0", "up")
			ip(t, "-n", "cri-retire", "link", "set", "eth0", "up")
			if l, err := netlink.LinkByName("veth00c0ffee"); err != nil {
				t.Fatal(err)
			} else if tt.made {
				p.shared.made("veth00c0ffee", l.Attrs().Index)
			}
			if slices.Contains(tt.setup, "name") {
				ip(t, "link", "set", "veth00c0ffee", "down") // kernels before 6.2 rename none that is up
			}
			if tt.setup != nil {
				ip(t, tt.setup...)
			}
			mac := "02:00:00:00:00:02"
			r := &current.Result{Interfaces: []*current.Interface{{Name: "veth00c0ffee", Mac: mac}, {Name: "eth0", Sandbox: ns}}}
			c := Call{ContainerID: "a", IfName: "eth0"} // the namespace is not needed
			switch {
			case tt.mac != "":
				r.Interfaces[0].Mac = tt.mac
			case tt.lost:
				r, c.NetNS = nil, ns
			}
			for range 2 {
				if err := p.retire(c, r); err != nil {
					t.Fatal(err)
				}
			}
			if p.shared.port("veth00c0ffee") != 0 {
				t.Error("what is retired is remembered")
			}
			if name == "renamed, ours" {
				defer ip(t, "link", "del", "veth00c0ffef")
				if s := ip(t, "-o", "-d", "link", "show", "veth00c0ffef"); !strings.Contains(s, group) {
					t.Error(s)
				}
			}
			out, err := exec.Command("ip", "-o", "-d", "link", "show", "veth00c0ffee").Output()
			want := tt.useless + tt.untouched
			if want == "" && err == nil || want != "" && !strings.Contains(string(out), want) || tt.useless != "" && !strings.Contains(string(out), group) {
				t.Errorf("%q: %s", want, out)
			}
		})
	}
}

// What another network has a host end's name for stays as it is, and the pod gets its link under another.
func TestVethNameTaken(t *testing.T) {
	testns.Root(t)
	ip(t, "link", "add", "veth00c0ffee", "type", "veth", "peer", "name", "other0")
	defer ip(t, "link", "del", "veth00c0ffee")
	ns, err := netns.Create("/run/netns", "cri-taken")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netns.Remove(ns); err != nil {
			t.Error(err)
		}
	}()
	netns.DropSocket(ns)
	f, err := netns.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(f)
	d, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	before := ip(t, "-d", "link", "show", "veth00c0ffee")
	v := veth{host: "veth00c0ffee", pod: "eth0", hostMAC: hardwareAddr(), podMAC: hardwareAddr(), netns: f}
	if _, err := v.create(d); !errors.Is(err, unix.EEXIST) {
		t.Fatalf("made: %v", err)
	}
	if after := ip(t, "-d", "link", "show", "veth00c0ffee"); after != before {
		t.Errorf("the other's link was\n%s, and is\n%s", before, after)
	}
	v.host, v.master = "veth00c0ffef", 1 // lo
	if _, err := v.create(d); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Fatalf("a port of what is no bridge: %v", err)
	}
	v.master = 0
	made, err := v.create(d)
	if err != nil {
		t.Fatal(err)
	}
	is := func(made device) {
		t.Helper()
		answers, err := d.do(linkRequest(v.host, 0))
		if err != nil {
			t.Fatal(err)
		}
		l, err := answers[0].device()
		if err != nil || !l.up() || l.index != made.index || l.parent != made.parent {
			t.Errorf("%+v, %v; told was %+v", l, err, made)
		}
	}
	is(made)
	// Older kernels don't tell what they made.
	v.host, v.pod = "veth00c0fff0", "eth1"
	if answers, err := d.do(v.request()); err != nil || answers[0].err != nil {
		t.Fatal(err, answers)
	}
	if made, err = v.start(d, answer{}); err != nil {
		t.Fatal(err)
	}
	is(made)
}

// Two networks want one bridge, with addresses that exclude each other, at once, again and again: whoever is first has the
// bridge, and it has that address.
func TestGatewaysExclude(t *testing.T) {
	testns.Root(t)
	p := New(t.TempDir(), nil)
	defer p.Close()
	for range 30 {
		ip(t, "link", "add", "excl0", "type", "bridge")
		ip(t, "link", "add", "veth00c0ffee", "type", "veth", "peer", "name", "excl1")
		br, err := netlink.LinkByName("excl0")
		if err != nil {
			t.Fatal(err)
		}
		port, err := netlink.LinkByName("veth00c0ffee")
		if err != nil {
			t.Fatal(err)
		}
		gws := []netip.Prefix{netip.MustParsePrefix("10.77.0.1/24"), netip.MustParsePrefix("10.78.0.1/24")}
		errs := make([]error, len(gws))
		var wg sync.WaitGroup
		for i, gw := range gws {
			wg.Go(func() {
				d, err := dial()
				if err != nil {
					errs[i] = err
					return
				}
				defer d.close()
				_, _, errs[i] = p.gatewayAddrs(d, &bridgeConf{conf: &conf{}, Bridge: "excl0"}, br.Attrs().Index, port.Attrs().Index, []netip.Prefix{gw})
			})
		}
		wg.Wait()
		list, err := netlink.AddrList(br, netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		first := 0
		if errs[0] != nil {
			first = 1
		}
		if errs[first] != nil || !errdefs.IsFailedPrecondition(errs[1-first]) {
			t.Errorf("%v; %v", errs[0], errs[1])
		}
		if len(list) != 1 || !list[0].IP.Equal(net.IP(gws[first].Addr().AsSlice())) {
			t.Errorf("the bridge has %v, and %s was given", list, gws[first])
		}
		ip(t, "link", "del", "excl0")
		ip(t, "link", "del", "veth00c0ffee")
		if t.Failed() {
			break
		}
	}
}
