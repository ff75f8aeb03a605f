package network

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
)

// referencePlugins returns a directory with the reference plugins: bin/cni, where make puts them, or built here.
func referencePlugins(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../bin/cni")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/portmap"); err == nil {
		return dir
	}
	dir = t.TempDir()
	c := exec.Command("go", "build", "-o", dir+"/", "tool")
	c.Dir = "../../test/cni-plugins"
	c.Env = append(os.Environ(), "GOFLAGS=-mod=mod")
	if out, err := c.CombinedOutput(); err != nil {
		t.Skipf("the reference CNI plugins are not in bin/cni and can't be built: %v\n%s", err, out)
	}
	return dir
}

const referenceConf = `{"cniVersion":"%s","name":"ref","plugins":[
	{"type":"loopback"},
	{"type":"bridge","bridge":"ref0","isGateway":true,"isDefaultGateway":true,"ipMasq":true,"ipMasqBackend":"nftables",
	 "hairpinMode":true,"mtu":1400,"dns":{"nameservers":["192.0.2.53"]},
	 "ipam":{"type":"host-local","dataDir":"%s","ranges":[[{"subnet":"10.99.0.0/24","rangeStart":"10.99.0.20"}],[{"subnet":"fd99::/64"}]],
	         "routes":[{"dst":"198.51.100.0/24"},{"dst":"2001:db8:5::/48"}]}},
	{"type":"portmap","backend":"nftables","snat":true,"capabilities":{"portMappings":true}}]}`

// TestReference attaches a pod by the reference plugins and by ours, with one configuration, and compares everything
// that one can see.
func TestReference(t *testing.T) {
	bin := referencePlugins(t)
	for _, version := range []string{"0.4.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			seen := map[string]map[string]any{}
			for _, mode := range []string{ModeCNI, ModeAuto} {
				t.Run(mode, func(t *testing.T) {
					n := newNode(t, mode, func(c *Config) { c.BinDirs = []string{bin} })
					write(t, n.cfg.ConfDir+"/10-ref.conflist", fmt.Sprintf(referenceConf, version, n.cfg.StateDir))
					if err := n.Status(); err != nil {
						t.Fatal(err)
					}
					seen[mode] = lookAround(t, n)
				})
			}
			if d := cmp.Diff(seen[ModeCNI], seen[ModeAuto]); d != "" {
				t.Errorf("the reference plugins (-) and ours (+) differ:\n%s", d)
			}
		})
	}
}

// lookAround attaches pods and returns what there is then, names and hardware addresses left out.
func lookAround(t *testing.T, n *node) map[string]any {
	out := outside(t)
	a, b := newPod(t), newPod(t)
	b.PortMappings = []PortMapping{{Protocol: "tcp", HostPort: 8080, ContainerPort: 80}, {Protocol: "udp", HostPort: 8053, ContainerPort: 53},
		{Protocol: "tcp", HostPort: 8081, ContainerPort: 80, HostIP: "192.0.2.1"}, {Protocol: "tcp", HostPort: 8082, ContainerPort: 80, HostIP: "::"}}
	ra, rb := n.attach(t, a), n.attach(t, b)
	see := map[string]any{"ips": fmt.Sprint(ra.IPs, rb.IPs), "interface": ra.Interface, "host interface": anonymous(ra.HostInterface),
		"result": decode(t, anonymous(string(ra.Raw)))}
	// The kernel's link watch makes operstate UP in the background, later on a busy machine.
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if !strings.Contains(inNS(t, a.NetNS, "ip", "link", "show", "eth0")+run(t, "ip", "link", "show", "master", "ref0"), "state DOWN") {
			break
		}
	}
	for name, args := range map[string]string{
		"addresses": "-j -d addr show", "routes": "-j route", "IPv6 routes": "-6 -j route",
	} {
		see["pod "+name] = decode(t, anonymous(inNS(t, a.NetNS, append([]string{"ip"}, strings.Fields(args)...)...)))
	}
	see["bridge"] = decode(t, anonymous(run(t, "ip", "-j", "-d", "addr", "show", "ref0")))
	see["ports"] = decode(t, anonymous(run(t, "ip", "-j", "-d", "link", "show", "master", "ref0")))
	for _, s := range []string{"ipv6/conf/eth0/accept_dad", "ipv6/conf/eth0/keep_addr_on_down", "ipv4/conf/eth0/arp_notify", "ipv6/conf/lo/disable_ipv6"} {
		see["pod "+s] = inNS(t, a.NetNS, "cat", "/proc/sys/net/"+s)
	}
	for _, s := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv4/conf/ref0/route_localnet", "ipv6/conf/ref0/accept_ra"} {
		see["host "+anonymous(s)] = run(t, "cat", "/proc/sys/net/"+s)
	}
	leases, _ := filepath.Glob(n.cfg.StateDir + "/ref/*")
	for _, f := range leases {
		content, _ := os.ReadFile(f)
		text := strings.TrimRight(string(content), " \t\n") // which the plugins trim
		see["lease "+filepath.Base(f)] = strings.NewReplacer(a.ID, "A", b.ID, "B").Replace(text)
	}
	// With the reference plugins the bridge's link-local address is tentative for a while, and IPv6 doesn't work.
	for deadline := time.Now().Add(5 * time.Second); run(t, "ip", "-6", "addr", "show", "dev", "ref0", "tentative") != "" && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
	}
	listen(t, b.NetNS, "tcp", ":80")
	listen(t, b.NetNS, "udp", rb.IPs[0].String()+":53")
	listen(t, out, "tcp", ":443")
	for _, tc := range []struct{ from, network, to string }{
		{a.NetNS, "tcp", netip.AddrPortFrom(rb.IPs[0], 80).String()}, {a.NetNS, "tcp", netip.AddrPortFrom(rb.IPs[1], 80).String()},
		{hostNS, "tcp", netip.AddrPortFrom(rb.IPs[0], 80).String()},
		{a.NetNS, "tcp", "192.0.2.2:443"}, {a.NetNS, "tcp", "[2001:db8::2]:443"},
		{out, "tcp", "192.0.2.1:8080"}, {out, "tcp", "[2001:db8::1]:8080"}, {out, "udp", "192.0.2.1:8053"},
		{out, "tcp", "192.0.2.1:8081"}, {out, "tcp", "[2001:db8::1]:8081"}, {out, "tcp", "192.0.2.1:8082"}, {out, "tcp", "[2001:db8::1]:8082"},
		{hostNS, "tcp", "127.0.0.1:8080"}, {hostNS, "tcp", "192.0.2.1:8080"}, {hostNS, "tcp", "127.0.0.1:8081"},
		{a.NetNS, "tcp", "192.0.2.1:8080"}, {b.NetNS, "tcp", "192.0.2.1:8080"}, {b.NetNS, "tcp", "[2001:db8::1]:8080"},
	} {
		from := map[string]string{a.NetNS: "A", b.NetNS: "B", out: "outside", hostNS: "host"}[tc.from]
		see[from+" calls "+tc.network+" "+tc.to] = port.ReplaceAllString(dial(tc.from, tc.network, tc.to), "PORT")
	}
	n.detach(t, b)
	see["after DEL"] = port.ReplaceAllString(dial(out, "tcp", "192.0.2.1:8080"), "PORT")
	files, _ := filepath.Glob(n.cfg.StateDir + "/ref/*")
	left := 0
	for _, f := range files {
		if _, err := netip.ParseAddr(filepath.Base(f)); err == nil { // ours keep the released one's file for the next
			left++
		}
	}
	see["leases after DEL"] = left
	return see
}

var (
	mac      = regexp.MustCompile(`[0-9a-f]{2}(:[0-9a-f]{2}){5}`)
	vethName = regexp.MustCompile(`veth[0-9a-f]{8}`)
	ids      = regexp.MustCompile(`[0-9a-f]{64}`)
	ll       = regexp.MustCompile(`fe80::[0-9a-f:]+`)
	port     = regexp.MustCompile(`(127\.0\.0\.1|192\.0\.2\.2|2001:db8::2\]?):[0-9]{5}`)
)

func anonymous(s string) string {
	for r, name := range map[*regexp.Regexp]string{mac: "MAC", vethName: "VETH", ids: "ID", ll: "fe80::LL"} {
		s = r.ReplaceAllString(s, name)
	}
	return s
}

// decode reads JSON and drops what differs between two runs of one program too.
func decode(t *testing.T, s string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		t.Fatalf("%v: %s", err, s)
	}
	return strip(v)
}

func strip(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range []string{"ifindex", "link_index", "link_netnsid", "bridge_id", "root_id", "designated_root", "designated_bridge",
			"gc_timer", "hello_timer", "tcn_timer", "topology_change_timer", "port_id", "id", "no", "designated_port", "hold_timer",
			"message_age_timer", "forward_delay_timer", "topology_change_ack", "config_pending"} {
			delete(v, k)
		}
		// Ours give the gateway on the bridge nodad, so that it is not tentative. Their host ends have no queue length
		// because the field is left at 0; the kernel's default is what shapers need. Ours make themselves no IPv6 address,
		// and have room for one queue, of which a veth uses one.
		for _, k := range []string{"num_tx_queues", "num_rx_queues", "inet6_addr_gen_mode", "nodad", "tentative", "preferred_life_time", "valid_life_time", "txqlen"} {
			delete(v, k)
		}
		for k := range v {
			v[k] = strip(v[k])
		}
	case []any:
		for i := range v {
			v[i] = strip(v[i])
		}
	}
	return v
}

// TestExternal: plugins of ours that shall run as programs do, also as another's IPAM.
func TestExternal(t *testing.T) {
	bin := referencePlugins(t)
	n := newNode(t, ModeAuto, func(c *Config) {
		c.BinDirs, c.External = []string{bin + "/none", bin}, []string{"host-local", "portmap"}
	})
	write(t, n.cfg.ConfDir+"/10-ref.conflist", fmt.Sprintf(referenceConf, "1.0.0", n.cfg.StateDir))
	p := newPod(t)
	p.PortMappings = []PortMapping{{Protocol: "tcp", HostPort: 8080, ContainerPort: 80}}
	r := n.attach(t, p)
	if s := run(t, "nft", "list", "ruleset"); !strings.Contains(s, "table ip cni_hostport") || !strings.Contains(s, "table inet cri_pods") {
		t.Error(s)
	}
	listen(t, p.NetNS, "tcp", ":80")
	if got := dial(hostNS, "tcp", netip.AddrPortFrom(r.IPs[0], 80).String()); got != "10.99.0.1" {
		t.Error(got)
	}
}

// TestTakeOver: what the reference plugins attached, ours detach, and the other way round.
func TestTakeOver(t *testing.T) {
	bin := referencePlugins(t)
	for _, order := range [][2]string{{ModeCNI, ModeAuto}, {ModeAuto, ModeCNI}} {
		t.Run(order[0]+" to "+order[1], func(t *testing.T) {
			n := newNode(t, order[0], func(c *Config) { c.BinDirs = []string{bin} })
			write(t, n.cfg.ConfDir+"/10-ref.conflist", fmt.Sprintf(referenceConf, "1.1.0", n.cfg.StateDir))
			old := newPod(t)
			if _, err := n.Attach(context.Background(), old); err != nil {
				t.Fatal(err)
			}
			if err := n.Close(); err != nil {
				t.Error(err)
			}
			n.cfg.Mode = order[1]
			n.open(t)
			if r := n.attach(t, newPod(t)); r.IPs[0].String() != "10.99.0.21" {
				t.Errorf("the other's lease does not count: %v", r.IPs)
			}
			n.detach(t, old)
			_ = netns.Remove(old.NetNS)
			if err := n.GC(context.Background(), map[string]bool{}); err != nil {
				t.Error(err)
			}
			run(t, "nft", "flush", "ruleset") // the rules are each plugin's own
		})
	}
}
