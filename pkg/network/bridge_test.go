package network

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
)

// bridgeWith is a bridge configuration with further keys.
func bridgeWith(keys, subnet string) string {
	return fmt.Sprintf(`{"type":"bridge","bridge":"cni0",%s"ipam":{"type":"host-local","ranges":[[{"subnet":%q}]],"routes":[]}}`, keys, subnet)
}

func TestBridgeAddresses(t *testing.T) {
	n := newNode(t, ModeAuto)
	n.conf(t, "10.conflist", "1.0.0", bridgeWith(`"isGateway":true,`, "10.77.0.0/24"))
	n.attach(t, newPod(t))
	n.conf(t, "10.conflist", "1.0.0", bridgeWith(`"isGateway":true,`, "10.78.0.0/24"))
	_, err := n.Attach(context.Background(), newPod(t))
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "10.77.0.1/24") || errdefs.IsAlreadyExists(err) {
		t.Errorf("another subnet: %v", err)
	}
	if leases, _ := filepath.Glob(n.cfg.StateDir + "/*/10.78.0.*"); len(leases) > 0 {
		t.Errorf("what failed has leased %v", leases)
	}
	if s := run(t, "ip", "-o", "-4", "addr", "show", "cni0"); strings.Contains(s, "10.78") || !strings.Contains(s, "10.77.0.1/24") {
		t.Error(s)
	}
	n.conf(t, "10.conflist", "1.0.0", bridgeWith(`"isGateway":true,"forceAddress":true,`, "10.78.0.0/24"))
	n.attach(t, newPod(t))
	if s := run(t, "ip", "-o", "-4", "addr", "show", "cni0"); strings.Contains(s, "10.77") || !strings.Contains(s, "10.78.0.1/24") {
		t.Error(s)
	}
	n.conf(t, "10.conflist", "1.0.0", bridgeWith(`"isGateway":true,`, "fd77::/64"))
	n.attach(t, newPod(t)) // beside IPv4
}

// TestPortWithoutIPv6: pods speak IPv6 over ports that have no IPv6 of their own, and so no address and no route.
func TestPortWithoutIPv6(t *testing.T) {
	n := newNode(t, ModeAuto)
	n.conf(t, "10.conflist", "1.0.0", bridgeWith(`"isGateway":true,`, "fd77::/64"))
	a, b := newPod(t), newPod(t)
	ra, rb := n.attach(t, a), n.attach(t, b)
	for _, r := range []*Result{ra, rb} {
		if s := run(t, "ip", "-6", "addr", "show", "dev", r.HostInterface) + run(t, "ip", "-6", "route", "show", "table", "all", "dev", r.HostInterface); s != "" {
			t.Errorf("%s has %s", r.HostInterface, s)
		}
	}
	listen(t, b.NetNS, "tcp", ":80")
	for _, from := range []string{a.NetNS, hostNS} {
		if got := dial(from, "tcp", netip.AddrPortFrom(rb.IPs[0], 80).String()); !strings.HasPrefix(got, "fd77::") {
			t.Errorf("from %s: %s", from, got)
		}
	}
}

// TestPodOfIPv4IsSilent: a pod that has no use for IPv6 makes itself no address of it, which would have it ask for routers and
// report its group by frames to every pod of the node; with one IPv6 address it needs that, and where another router may be on the
// link. IPv6 itself stays.
func TestPodOfIPv4IsSilent(t *testing.T) {
	for name, tt := range map[string]struct{ ranges, conf, want string }{
		"IPv4":                  {"10.77.0.0/24", `"isGateway":true,`, "1"},
		"IPv4, default gateway": {"10.77.0.0/24", `"isDefaultGateway":true,`, "1"},
		"IPv4, entered":         {"10.77.0.0/24", `"isGateway":true,"enabledad":true,`, "1"},
		"no gateway":            {"10.77.0.0/24", "", "0"},
		"no gateway, entered":   {"10.77.0.0/24", `"enabledad":true,`, "0"},
		"IPv6":                  {"fd77::/64", `"isGateway":true,`, "0"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, ModeAuto)
			n.conf(t, "10.conflist", "1.0.0", bridgeWith(tt.conf, tt.ranges))
			p := newPod(t)
			r := n.attach(t, p)
			if got := strings.TrimSpace(inNS(t, p.NetNS, "cat", "/proc/sys/net/ipv6/conf/eth0/addr_gen_mode")); got != tt.want {
				t.Errorf("addr_gen_mode of the pod is %s, want %s", got, tt.want)
			}
			if got := strings.TrimSpace(inNS(t, p.NetNS, "cat", "/proc/sys/net/ipv6/conf/eth0/disable_ipv6")); got != "0" {
				t.Errorf("disable_ipv6 is %s", got)
			}
			if !strings.Contains(tt.conf, "ateway") {
				return // the node has no way to it
			}
			listen(t, p.NetNS, "tcp", ":80")
			if got := dial(hostNS, "tcp", netip.AddrPortFrom(r.IPs[0], 80).String()); !strings.HasPrefix(got, tt.ranges[:4]) {
				t.Error(got)
			}
		})
	}
}

// TestBridgeWithoutHardwareAddress: the kernel gives a bridge the lowest address of its ports, and none when the last one goes.
func TestBridgeWithoutHardwareAddress(t *testing.T) {
	n := newNode(t, ModeAuto)
	n.conf(t, "10.conflist", "1.0.0", bridgeWith(`"isGateway":true,`, "10.77.0.0/24"))
	for _, line := range []string{"link add cni0 type bridge", "link add port0 type veth peer name port1", "link set port0 master cni0", "link set cni0 up",
		"link del port0"} {
		run(t, "ip", strings.Fields(line)...)
	}
	if s := run(t, "ip", "-o", "link", "show", "cni0"); !strings.Contains(s, "link/ether 00:00:00:00:00:00") {
		t.Skip("this kernel leaves the bridge an address:", s)
	}
	n.attach(t, newPod(t))
	before := run(t, "ip", "-o", "link", "show", "cni0")
	if strings.Contains(before, "link/ether 00:00:00:00:00:00") {
		t.Error(before)
	}
	n.attach(t, newPod(t))
	if after := run(t, "ip", "-o", "link", "show", "cni0"); after != before {
		t.Errorf("the bridge's address follows its ports: %s%s", before, after)
	}
}

func TestBridgeExhausted(t *testing.T) {
	n := newNode(t, ModeAuto)
	n.conf(t, "10.conflist", "1.0.0", bridgeWith(`"isGateway":true,"ipMasq":true,`, "10.77.0.0/30"))
	n.attach(t, newPod(t))
	p := newPod(t)
	if _, err := n.Attach(context.Background(), p); !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), n.cfg.StateDir) {
		t.Errorf("no address left: %v", err)
	}
	if s := inNS(t, p.NetNS, "ip", "-o", "-4", "addr"); strings.Contains(s, "eth0") {
		t.Error(s)
	}
}

func TestNotABridge(t *testing.T) {
	n := newNode(t, ModeAuto)
	run(t, "ip", "link", "add", "cni0", "type", "veth", "peer", "name", "cni0peer")
	t.Cleanup(func() { run(t, "ip", "link", "del", "cni0") })
	n.conf(t, "10.conflist", "1.0.0", bridgeWith(``, "10.77.0.0/24"))
	if _, err := n.Attach(context.Background(), newPod(t)); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "not a bridge but a veth") {
		t.Error(err)
	}
}

func TestBridgeOptions(t *testing.T) {
	n := newNode(t, ModeAuto)
	n.conf(t, "10.conflist", "1.0.0", bridgeWith(`"promiscMode":true,"portIsolation":true,"mtu":1280,"unknownKey":1,"args":{"cni":{"mac":"02:00:00:00:00:77"}},`, "10.77.0.0/24"))
	p := newPod(t)
	r := n.attach(t, p)
	if s := run(t, "ip", "-d", "link", "show", "cni0"); !strings.Contains(s, "PROMISC") {
		t.Error(s)
	}
	if s := run(t, "ip", "-d", "link", "show", r.HostInterface); !strings.Contains(s, "isolated on") || !strings.Contains(s, "mtu 1280") {
		t.Error(s)
	}
	if s := inNS(t, p.NetNS, "ip", "link", "show", "eth0"); !strings.Contains(s, "02:00:00:00:00:77") || !strings.Contains(s, "mtu 1280") {
		t.Error(s)
	}
	if s := run(t, "ip", "-o", "-4", "addr", "show", "cni0"); s != "" {
		t.Errorf("the bridge has an address without isGateway: %s", s)
	}
	for key, keys := range map[string]string{
		"hairpinMode": `"hairpinMode":true,"promiscMode":true,`, "disableContainerInterface": `"disableContainerInterface":true,`,
		"mtu": `"mtu":-1,`, "hardware address": `"args":{"cni":{"mac":"x"}},`,
	} {
		n.conf(t, "10.conflist", "1.0.0", bridgeWith(keys, "10.77.0.0/24"))
		if _, err := n.Attach(context.Background(), newPod(t)); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// TestBridgeChanges: what happens to the bridge between two pods, whose plugin remembers it, is seen, and leaves the pod nothing twice.
// TestBridgeByOtherName: a configuration may name a bridge by an alternative name.
func TestBridgeByOtherName(t *testing.T) {
	n := newNode(t, ModeAuto)
	n.conf(t, "10.conflist", "1.0.0", bridgeWith(`"isGateway":true,"bridge":"other0",`, "10.77.0.0/24"))
	for _, line := range []string{"link add cni0 up type bridge", "link property add dev cni0 altname other0"} {
		run(t, "ip", strings.Fields(line)...)
	}
	for range 2 { // the second time it is known
		r := n.attach(t, newPod(t))
		if s := run(t, "ip", "link", "show", r.HostInterface); !strings.Contains(s, "master cni0") {
			t.Error(s)
		}
	}
}

func TestBridgeChanges(t *testing.T) {
	n := newNode(t, ModeAuto)
	n.conf(t, "10.conflist", "1.0.0", bridgeWith(`"isGateway":true,"hairpinMode":true,`, "10.77.0.0/24"))
	n.attach(t, newPod(t))
	for _, tc := range []struct {
		name    string
		prepare [][]string
	}{
		{"nothing", nil},
		{"down", [][]string{{"link", "set", "cni0", "down"}}},
		{"renamed", [][]string{{"link", "set", "cni0", "down"}, {"link", "set", "cni0", "name", "cni1"}, {"link", "set", "cni1", "up"}}},
		{"gone", [][]string{{"link", "del", "cni0"}}},
		{"replaced", [][]string{{"link", "del", "cni0"}, {"link", "add", "cni0", "type", "bridge"}}},
		{"replaced by one that is up", [][]string{{"link", "del", "cni0"}, {"link", "add", "cni0", "up", "type", "bridge"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, args := range tc.prepare {
				run(t, "ip", args...)
			}
			p := newPod(t)
			r := n.attach(t, p)
			if s := run(t, "ip", "-d", "link", "show", r.HostInterface); !strings.Contains(s, "master cni0") || !strings.Contains(s, "hairpin on") {
				t.Error(s)
			}
			if s := run(t, "ip", "-o", "addr", "show", "cni0", "up"); !strings.Contains(s, "10.77.0.1/24") {
				t.Error(s)
			}
			if s := inNS(t, p.NetNS, "ip", "-o", "-4", "addr", "show", "eth0", "up"); !strings.Contains(s, r.IPs[0].String()+"/24") {
				t.Error(s)
			}
			if leases, _ := filepath.Glob(n.cfg.StateDir + "/*/10.77.0.*"); len(leases) != 2 {
				t.Errorf("leases %v", leases)
			}
		})
	}
	run(t, "ip", "link", "del", "cni1")
}

func TestDuplicateAddressDetection(t *testing.T) {
	n := newNode(t, ModeAuto)
	n.conf(t, "10.conflist", "1.0.0", bridgeWith(`"isGateway":true,"enabledad":true,`, "fd77::/64"))
	p := newPod(t)
	n.attach(t, p)
	if s := inNS(t, p.NetNS, "ip", "-6", "addr", "show", "dev", "eth0"); strings.Contains(s, "tentative") || !strings.Contains(s, "fd77::2/64") {
		t.Error(s)
	}
}

// TestCheck runs CNI's CHECK, which kubelet never asks for but tools do.
func TestCheck(t *testing.T) {
	n := newNode(t, ModeAuto)
	n.conf(t, "10.conflist", "1.0.0", bridgePlugin, `{"type":"portmap","capabilities":{"portMappings":true}}`, `{"type":"loopback"}`)
	p := newPod(t)
	p.PortMappings = []PortMapping{{Protocol: "tcp", HostPort: 81, ContainerPort: 80}}
	n.attach(t, p)
	check := func() error {
		list, err := n.list()
		if err != nil {
			t.Fatal(err)
		}
		rt, err := n.runtimeConf(p)
		if err != nil {
			t.Fatal(err)
		}
		return n.lib.CheckNetworkList(context.Background(), list.NetworkConfigList, rt)
	}
	if err := check(); err != nil {
		t.Error(err)
	}
	for _, broken := range []struct{ want, ns, command, repair string }{
		{"host port", "", "nft delete element inet cri_pods hostport4 { tcp . 81 }", ""},
		{"lo is down", p.NetNS, "ip link set lo down", "ip link set lo up"},
		{"lacks the address", p.NetNS, "ip addr flush dev eth0", ""},
	} {
		if broken.ns == "" {
			run(t, "sh", "-c", "set -f; "+broken.command)
		} else {
			inNS(t, broken.ns, strings.Fields(broken.command)...)
		}
		if err := check(); err == nil || !strings.Contains(err.Error(), broken.want) && broken.want != "lo is down" {
			t.Errorf("%s: %v", broken.want, err)
		}
		if broken.repair != "" {
			inNS(t, broken.ns, strings.Fields(broken.repair)...)
		}
	}
	if _, err := n.lib.GetVersionInfo(context.Background(), "bridge"); err != nil {
		t.Error(err)
	}
}

// TestPersistentNamespace: a namespace that outlives its attachment loses the link within moments.
func TestPersistentNamespace(t *testing.T) {
	n := newNode(t, ModeEmbedded)
	p := newPod(t)
	n.attach(t, p)
	n.detach(t, p)
	eventually(t, "the link is deleted", func() bool {
		return exec.Command("nsenter", "--net="+p.NetNS, "ip", "link", "show", "eth0").Run() != nil
	})
	inUse := newPod(t)
	inNS(t, inUse.NetNS, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
	if _, err := n.Attach(context.Background(), inUse); !errdefs.IsAlreadyExists(err) {
		t.Errorf("eth0 is there: %v", err)
	}
}

// TestUserNamespace attaches a namespace that belongs to a user namespace, as that of a pod with user namespaces does.
func TestUserNamespace(t *testing.T) {
	n := newNode(t, ModeEmbedded)
	c := exec.Command("sleep", "1000")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL,
		UidMappings: []syscall.SysProcIDMap{{HostID: 100000, Size: 65536}}, GidMappings: []syscall.SysProcIDMap{{HostID: 100000, Size: 65536}}}
	if err := c.Start(); err != nil {
		t.Skipf("no user namespaces: %v", err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	p := newPod(t)
	if err := netns.Remove(p.NetNS); err != nil {
		t.Fatal(err)
	}
	if _, err := netns.PinPID("/run/netns", filepath.Base(p.NetNS), c.Process.Pid); err != nil {
		t.Fatal(err)
	}
	r := n.attach(t, p)
	listen(t, p.NetNS, "tcp", ":80")
	if got := dial(hostNS, "tcp", r.IPs[0].String()+":80"); got != "10.88.0.1" {
		t.Error(got)
	}
	n.detach(t, p)
	_ = c.Process.Kill()
}

// TestCrashes: what a crash at any moment of Attach leaves is gone after the Detach of the next process.
func TestCrashes(t *testing.T) {
	for name, lose := range map[string]func(n *node, p Pod){
		"result not written": func(n *node, _ Pod) { _ = os.RemoveAll(n.cfg.CacheDir + "/results") },
		"result half written": func(n *node, p Pod) {
			_ = os.WriteFile(n.cfg.CacheDir+"/results/cri-"+p.ID+"-eth0", []byte(`{"kind":"cniCac`), 0o600)
		},
		"namespace gone":       func(_ *node, p Pod) { _ = netns.Remove(p.NetNS) },
		"ruleset flushed":      func(*node, Pod) { _ = exec.Command("nft", "flush", "ruleset").Run() },
		"lease gone":           func(n *node, _ Pod) { _ = os.RemoveAll(n.cfg.StateDir) },
		"bridge deleted":       func(*node, Pod) { _ = exec.Command("ip", "link", "del", "cri0").Run() },
		"everything as it was": func(*node, Pod) {},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, ModeEmbedded)
			p := newPod(t)
			p.PortMappings = []PortMapping{{Protocol: "tcp", HostPort: 81, ContainerPort: 80}}
			if _, err := n.Attach(context.Background(), p); err != nil {
				t.Fatal(err)
			}
			lose(n, p)
			if err := n.Close(); err != nil {
				t.Error(err)
			}
			n.open(t)
			n.detach(t, p)
			n.detach(t, p)
			q := newPod(t)
			q.PortMappings = p.PortMappings
			n.attach(t, q)
		})
	}
}
