package network

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
)

var (
	lastByte  = regexp.MustCompile(`10\.99\.0\.[0-9]+|fd99::[0-9a-f]+`)
	podName   = regexp.MustCompile(`"(pod|uid-)[0-9]+"`)
	operState = regexp.MustCompile(`"operstate":"[A-Z]+"`) // it comes by itself, later
)

// Plugins that run in process without libcni between them leave the same as with it: result, cached result, links, addresses,
// routes, sysctls; by the namespace's own socket as by entering it.
func TestChainIsLibcni(t *testing.T) {
	const plugins = `{"type":"bridge","bridge":"ref0","isGateway":true,"ipMasq":true,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.99.0.0/24"}]IP6],"routes":[{"dst":"0.0.0.0/0"},{"dst":"198.51.100.0/24","gw":"10.99.0.1"}IP6ROUTE]}},` +
		`{"type":"loopback"},{"type":"portmap","capabilities":{"portMappings":true}}`
	for name, tt := range map[string]struct {
		version, ranges, routes string
	}{
		"IPv4":        {version: "1.0.0"},
		"old version": {version: "0.3.1"},
		"dual stack":  {version: "1.1.0", ranges: `,[{"subnet":"fd99::/64"}]`, routes: `,{"dst":"::/0"}`},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, ModeAuto)
			n.conf(t, "10.conflist", tt.version, strings.NewReplacer("IP6ROUTE", tt.routes, "IP6", tt.ranges).Replace(plugins))
			see := func(libcni, entered bool) map[string]any {
				n.conf(t, "10.conflist", tt.version, strings.NewReplacer("IP6ROUTE", tt.routes, "IP6", tt.ranges).Replace(plugins))
				list, err := n.list()
				if err != nil {
					t.Fatal(err)
				}
				if libcni {
					list.compile.Do(func() {}) // and so never compiled
				}
				p := newPod(t)
				p.PortMappings = []PortMapping{{ContainerPort: 80, HostPort: 8080, Protocol: "tcp"}}
				if entered {
					if fd := netns.TakeSocket(p.NetNS); fd < 0 {
						t.Fatal("no socket")
					} else if err := os.NewFile(uintptr(fd), "socket").Close(); err != nil {
						t.Fatal(err)
					}
				}
				r := n.attach(t, p)
				if got := list.compiled != nil; got == libcni {
					t.Fatalf("in process: %v", got)
				}
				if netns.TakeSocket(p.NetNS) >= 0 && !strings.Contains(tt.ranges, ":") {
					t.Error("the socket was not used")
				}
				defer n.detach(t, p)
				return look(t, n, p, r)
			}
			want := see(true, true)
			for what, got := range map[string]map[string]any{"by a socket": see(false, false), "entered": see(false, true)} {
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s: %s", what, diff)
				}
			}
		})
	}
}

// look is all that an attachment is, but for what differs between any two.
func look(t *testing.T, n *node, p Pod, r *Result) map[string]any {
	t.Helper()
	same := func(s string) any {
		for from, to := range map[string]string{p.ID: "ID", r.HostInterface: "VETH"} {
			s = strings.ReplaceAll(s, from, to)
		}
		s = strings.ReplaceAll(operState.ReplaceAllString(s, `"operstate":""`), `"NO-CARRIER",`, "")
		s = podName.ReplaceAllString(lastByte.ReplaceAllString(s, "ADDRESS"), `"NAME"`)
		return decode(t, anonymous(s))
	}
	files, err := filepath.Glob(n.cfg.CacheDir + "/results/*" + p.ID + "*")
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	cached, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var result Result
	if err := json.Unmarshal(raw, &result); err != nil {
		t.Fatal(err)
	}
	// The carrier, and with it a link-local address where there is IPv6, comes by itself, a moment later.
	for deadline := time.Now().Add(10 * time.Second); slices.ContainsFunc(r.IPs, netip.Addr.Is6) && inNS(t, p.NetNS, "ip", "-6", "addr", "show", "dev", "eth0", "scope", "link") == "" && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	see := map[string]any{"cached": same(string(cached)), "raw": same(string(result.Raw)), "interface": r.Interface,
		"host interface": anonymous(r.HostInterface), "network": r.Network, "addresses": len(r.IPs), "IPv4": r.IPs[0].Is4() && r.IPs[0] != netip.Addr{},
		"pod": same(inNS(t, p.NetNS, "ip", "-j", "-d", "addr")), "routes": same(inNS(t, p.NetNS, "ip", "-j", "route")),
		"routes 6": same(inNS(t, p.NetNS, "ip", "-j", "-6", "route")), "bridge": same(run(t, "ip", "-j", "addr", "show", "ref0"))}
	for _, s := range []string{"ipv6/conf/eth0/accept_dad", "ipv4/conf/eth0/arp_notify", "ipv6/conf/lo/disable_ipv6"} {
		see[s] = inNS(t, p.NetNS, "cat", "/proc/sys/net/"+s)
	}
	return see
}

// An attachment that this process made goes without libcni, whatever happened to its record and to the configuration; of another
// process's, one that was made with the configuration in force does, and one of another configuration, or with a record that can't be
// read, is libcni's. All leave nothing, which newNode looks for.
func TestDetachInProcess(t *testing.T) {
	const plugins = `{"type":"bridge","bridge":"ref0","isGateway":true,"ipMasq":true,"mtu":MTU,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.99.0.0/24"}]]}},` +
		`{"type":"loopback"},{"type":"portmap","capabilities":{"portMappings":true}}`
	for name, tt := range map[string]struct {
		change func(t *testing.T, n *node, p Pod, file string)
		done   bool
	}{
		"as it was":      {func(*testing.T, *node, Pod, string) {}, true},
		"namespace gone": {func(t *testing.T, _ *node, p Pod, _ string) { _ = netns.Remove(p.NetNS) }, true},
		"namespace's file left": {func(t *testing.T, n *node, p Pod, _ string) {
			_ = netns.Remove(p.NetNS)
			write(t, p.NetNS, "")
		}, true},
		"another configuration": {func(t *testing.T, n *node, _ Pod, _ string) {
			n.conf(t, "10.conflist", "1.0.0", strings.ReplaceAll(plugins, "MTU", "1300"))
		}, false},
		"no configuration": {func(t *testing.T, n *node, _ Pod, _ string) {
			if err := os.Remove(n.cfg.ConfDir + "/10.conflist"); err != nil {
				t.Fatal(err)
			}
		}, false},
		"another pod's": {func(t *testing.T, _ *node, p Pod, file string) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			write(t, file+".other", strings.ReplaceAll(string(b), p.ID, "another"))
			if err := os.Rename(file+".other", file); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { write(t, file, string(b)) })
		}, false},
		"half written": {func(t *testing.T, _ *node, _ Pod, file string) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { write(t, file, string(b)) })
			write(t, file, string(b[:len(b)/2]))
		}, false},
	} {
		for _, ours := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, ours %t", name, ours), func(t *testing.T) {
				n := newNode(t, ModeAuto)
				n.conf(t, "10.conflist", "1.0.0", strings.ReplaceAll(plugins, "MTU", "1400"))
				p := newPod(t)
				p.PortMappings = []PortMapping{{ContainerPort: 80, HostPort: 8080, Protocol: "tcp"}}
				p.Annotations = map[string]string{"large": strings.Repeat("x", 1<<16)}
				n.attach(t, p)
				if kept := n.active[p.ID].capabilities; len(kept) != 1 || kept["portMappings"] == nil {
					t.Errorf("kept are %v", slices.Collect(maps.Keys(kept)))
				}
				files, err := filepath.Glob(n.cfg.CacheDir + "/results/*" + p.ID + "*")
				if err != nil || len(files) != 1 {
					t.Fatalf("%v, %v", files, err)
				}
				done := ours || tt.done
				if !ours {
					n.forget(p.ID) // as after a restart
				}
				tt.change(t, n, p, files[0])
				q := p
				if name == "namespace gone" {
					q.NetNS = ""
				}
				if did, err := n.detachInProcess(t.Context(), q); err != nil || did != done {
					t.Errorf("%v, %v", did, err)
				}
				if _, err := os.Stat(files[0]); done != os.IsNotExist(err) {
					t.Errorf("the cached result: %v", err)
				}
			})
		}
	}
}

// TestResultsElsewhere: the results may be on a file system of their own, such as a tmpfs that is empty after a reboot.
func TestResultsElsewhere(t *testing.T) {
	n := newNode(t, ModeEmbedded)
	results := filepath.Join(n.cfg.CacheDir, "results")
	if err := os.MkdirAll(results, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", results, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(results, unix.MNT_DETACH) }()
	for range 2 {
		p := newPod(t)
		n.attach(t, p)
		if list, err := os.ReadDir(results); err != nil || len(list) != 1 {
			t.Errorf("results: %v, %v", list, err)
		}
		if err := n.Detach(t.Context(), p); err != nil {
			t.Error(err)
		}
	}
	for dir, want := range map[string]int{results: 0, n.cfg.CacheDir: 1} { // which is results
		if list, err := os.ReadDir(dir); err != nil || len(list) != want {
			t.Errorf("%s: %v, %v", dir, list, err)
		}
	}
}
