package network

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
)

func TestEmbeddedConnectivity(t *testing.T) {
	n := newNode(t, ModeEmbedded)
	if err := n.Status(); err != nil {
		t.Fatal(err)
	}
	out := outside(t)
	a, b := newPod(t), newPod(t)
	b.PortMappings = []PortMapping{
		{Protocol: "tcp", HostPort: 8080, ContainerPort: 80}, {Protocol: "UDP", HostPort: 8053, ContainerPort: 53},
		{Protocol: "tcp", HostPort: 0, ContainerPort: 99}, {Protocol: "tcp", HostPort: 8081, ContainerPort: 80, HostIP: "192.0.2.1"},
	}
	ra, rb := n.attach(t, a), n.attach(t, b)
	if fmt.Sprint(ra.IPs, rb.IPs) != "[10.88.0.2 fd88::2] [10.88.0.3 fd88::3]" || ra.Interface != "eth0" || ra.Network != "cri" ||
		!strings.HasPrefix(ra.HostInterface, "veth") {
		t.Errorf("%+v %+v", ra, rb)
	}
	for _, l := range [][2]string{{"tcp", ":80"}, {"udp", "10.88.0.3:53"}} {
		listen(t, b.NetNS, l[0], l[1])
	}
	listen(t, out, "tcp", ":443")
	host4, host6 := "10.88.0.1", "fd88::1"
	for _, tc := range []struct{ name, from, network, to, want string }{
		{"pod to pod", a.NetNS, "tcp", "10.88.0.3:80", "10.88.0.2"},
		{"pod to pod, IPv6", a.NetNS, "tcp", "[fd88::3]:80", "fd88::2"},
		{"host to pod", hostNS, "tcp", "10.88.0.3:80", host4},
		{"host to pod, IPv6", hostNS, "tcp", "[fd88::3]:80", host6},
		{"pod to outside, masqueraded", a.NetNS, "tcp", "192.0.2.2:443", "192.0.2.1"},
		{"pod to outside, IPv6", a.NetNS, "tcp", "[2001:db8::2]:443", "2001:db8::1"},
		{"host port from outside", out, "tcp", "192.0.2.1:8080", "192.0.2.2"},
		{"host port from outside, IPv6", out, "tcp", "[2001:db8::1]:8080", "2001:db8::2"},
		{"host port of one address", out, "tcp", "192.0.2.1:8081", "192.0.2.2"},
		{"UDP host port from outside", out, "udp", "192.0.2.1:8053", "192.0.2.2"},
		{"host port from localhost", hostNS, "tcp", "127.0.0.1:8080", host4},
		{"host port from the host's address", hostNS, "tcp", "192.0.2.1:8080", ""},
		{"host port from another pod", a.NetNS, "tcp", "192.0.2.1:8080", "10.88.0.2"},
		{"hairpin", b.NetNS, "tcp", "192.0.2.1:8080", host4},
		{"hairpin, IPv6", b.NetNS, "tcp", "[2001:db8::1]:8080", host6},
	} {
		got := dial(tc.from, tc.network, tc.to)
		if _, err := netip.ParseAddr(got); err != nil || tc.want != "" && got != tc.want {
			t.Errorf("%s: %s, not %s", tc.name, got, tc.want)
		}
	}
	if got := dial(hostNS, "tcp", "10.88.0.1:8081"); !strings.Contains(got, "refused") {
		t.Errorf("a port of one address answers on another: %s", got)
	}
	c := newPod(t)
	c.PortMappings = b.PortMappings[:1]
	if _, err := n.Attach(context.Background(), c); !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), "pod default/"+b.Name) {
		t.Errorf("conflict of host ports: %v", err)
	}
	n.detach(t, b)
	if got := dial(out, "tcp", "192.0.2.1:8080"); !strings.Contains(got, "refused") {
		t.Errorf("the host port answers after DEL: %s", got)
	}
	// Gone, or useless until it is.
	if got, err := exec.Command("ip", "-o", "-d", "link", "show", rb.HostInterface).Output(); err == nil && !strings.Contains(string(got), "bridge_slave state disabled") {
		t.Errorf("the pod's port lets frames through: %s", got)
	}
	n.detach(t, b)
	// The namespace stays and is attached again before its old link is deleted.
	b.PortMappings = nil
	if r := n.attach(t, b); dial(a.NetNS, "tcp", r.IPs[0].String()+":80") != "10.88.0.2" {
		t.Error("no connection after the second attachment")
	}
}

func TestParallelAttach(t *testing.T) {
	n := newNode(t, ModeEmbedded)
	pods := make([]Pod, 100)
	for i := range pods {
		pods[i] = newPod(t)
		pods[i].PortMappings = []PortMapping{{Protocol: "tcp", HostPort: int32(20000 + i), ContainerPort: 80}}
	}
	var wg sync.WaitGroup
	var seen sync.Map
	for _, p := range pods {
		wg.Go(func() {
			r, err := n.Attach(context.Background(), p)
			if err != nil {
				t.Error(err)
				return
			}
			if other, dup := seen.LoadOrStore(r.IPs[0], p.ID); dup {
				t.Errorf("%s is of %s and %s", r.IPs[0], p.ID, other)
			}
		})
	}
	wg.Wait()
	for _, p := range pods {
		wg.Go(func() { n.detach(t, p); _ = netns.Remove(p.NetNS); n.detach(t, p) })
	}
	wg.Wait()
}

func BenchmarkAttachDetach(b *testing.B) {
	for _, tc := range []struct{ present, ports int }{{0, 0}, {0, 1}, {400, 0}, {400, 1}} {
		b.Run(fmt.Sprintf("%d pods, %d host ports", tc.present, tc.ports), func(b *testing.B) {
			n := newNode(b, ModeEmbedded, func(c *Config) { c.PodCIDRs = []string{"10.88.0.0/16"} })
			for i := range tc.present {
				p := newPod(b)
				p.PortMappings = []PortMapping{{Protocol: "tcp", HostPort: int32(20000 + i), ContainerPort: 80}}
				n.attach(b, p)
			}
			var attach, detach time.Duration
			for b.Loop() {
				p := newPod(b)
				if tc.ports > 0 {
					p.PortMappings = []PortMapping{{Protocol: "tcp", HostPort: 8080, ContainerPort: 80}}
				}
				start := time.Now()
				if _, err := n.Attach(context.Background(), p); err != nil {
					b.Fatal(err)
				}
				attached := time.Now()
				n.detach(b, p)
				detach += time.Since(attached)
				attach += attached.Sub(start)
				_ = netns.Remove(p.NetNS)
			}
			b.ReportMetric(float64(attach.Microseconds())/float64(b.N), "µs/attach")
			b.ReportMetric(float64(detach.Microseconds())/float64(b.N), "µs/detach")
		})
	}
}
