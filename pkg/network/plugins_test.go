package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// fake is a plugin that notes how it was called and prints what the file answer-COMMAND holds, or its prevResult's place
// taken by a fixed result.
const fake = `#!/bin/sh
d=$(dirname "$0")
cat > "$d/stdin-$CNI_COMMAND"
env | grep ^CNI_ | sort > "$d/env-$CNI_COMMAND"
echo "$CNI_COMMAND" >> "$d/calls"
if [ -x "$d/do-$CNI_COMMAND" ]; then . "$d/do-$CNI_COMMAND"; exit; fi
[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"10.5.0.9/24","interface":0}]}'
exit 0
`

const bridgePlugin = `{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,"ipam":{"type":"host-local","subnet":"10.77.0.0/24","routes":[{"dst":"0.0.0.0/0"}]}}`

func (n *node) conf(t testing.TB, name, version string, plugins ...string) {
	t.Helper()
	write(t, n.cfg.ConfDir+"/"+name, fmt.Sprintf(`{"cniVersion":%q,"name":"net","plugins":[%s]}`, version, strings.Join(plugins, ",")))
}

func (n *node) fake(t testing.TB) string {
	t.Helper()
	write(t, n.cfg.BinDirs[0]+"/fake", fake)
	return n.cfg.BinDirs[0]
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestHostileResults: a plugin behind bridge returns nonsense; the error names the trouble and bridge's work is undone.
func TestHostileResults(t *testing.T) {
	for name, tc := range map[string]struct{ do, want string }{
		"not JSON":          {`echo hello`, "invalid character 'h'"},
		"nothing":           {`true`, ""},
		"no addresses":      {`echo '{"cniVersion":"1.0.0"}'`, "no address"},
		"other interface":   {`echo '{"cniVersion":"1.0.0","interfaces":[{"name":"net1","sandbox":"x"}],"ips":[{"address":"10.5.0.9/24","interface":0}]}'`, "no address"},
		"interface index":   {`echo '{"cniVersion":"1.0.0","ips":[{"address":"10.5.0.9/24","interface":7}]}'`, "interface 7"},
		"negative index":    {`echo '{"cniVersion":"1.0.0","ips":[{"address":"10.5.0.9/24","interface":-1}]}'`, "interface -1"},
		"null interface":    {`echo '{"cniVersion":"1.0.0","interfaces":[null],"ips":[{"address":"10.5.0.9/24","interface":0}]}'`, ""},
		"null address":      {`echo '{"cniVersion":"1.0.0","ips":[null]}'`, ""},
		"unspecified":       {`echo '{"cniVersion":"1.0.0","ips":[{"address":"0.0.0.0/0"}]}'`, "no address for a pod"},
		"loopback":          {`echo '{"cniVersion":"1.0.0","ips":[{"address":"127.0.0.1/8"}]}'`, "no address for a pod"},
		"multicast":         {`echo '{"cniVersion":"1.0.0","ips":[{"address":"ff02::1/64"}]}'`, "no address for a pod"},
		"bad address":       {`echo '{"cniVersion":"1.0.0","ips":[{"address":"10.5.0.999/24"}]}'`, ""},
		"unknown version":   {`echo '{"cniVersion":"9.9.9","ips":[{"address":"10.5.0.9/24"}]}'`, "9.9.9"},
		"huge":              {`head -c 3000000 /dev/zero | tr '\0' x`, "wrote more than"},
		"too many":          {`printf '{"cniVersion":"1.0.0","ips":['; for i in $(seq 99); do printf '{"address":"10.5.0.9/24"},'; done; echo '{"address":"10.5.0.9/24"}]}'`, "too many"},
		"CNI error":         {`echo '{"cniVersion":"1.0.0","code":11,"msg":"try later","details":"no room"}'; exit 1`, "try later: no room (code 11)"},
		"error, no JSON":    {`echo boom >&2; echo what; exit 3`, "boom"},
		"killed":            {`kill -9 $$`, "killed"},
		"reading nothing":   {`exec 0<&-; exit 1`, "exit status 1"},
		"DEL fails as well": {`exit 1`, "exit status 1"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, ModeAuto)
			dir := n.fake(t)
			write(t, dir+"/do-ADD", tc.do)
			if name == "DEL fails as well" {
				write(t, dir+"/do-DEL", "exit 1")
			}
			n.conf(t, "10.conflist", "1.0.0", bridgePlugin, `{"type":"fake"}`)
			p := newPod(t)
			r, err := n.Attach(context.Background(), p)
			if err == nil || !strings.Contains(err.Error(), tc.want) || len(err.Error()) > 4000 {
				t.Errorf("%v %.5000v", r, err)
			}
			if calls := read(t, dir+"/calls"); calls != "ADD\nDEL\n" {
				t.Errorf("calls: %q", calls)
			}
			// leakCheck looks for the rest.
		})
	}
}

func TestHangingPlugin(t *testing.T) {
	n := newNode(t, ModeAuto, func(c *Config) { c.PluginTimeout = time.Second }) // for the DELs too, on a busy machine
	write(t, n.fake(t)+"/do-ADD", "sleep 1000 & sleep 1000")
	n.conf(t, "10.conflist", "1.0.0", bridgePlugin, `{"type":"fake"}`)
	start := time.Now()
	_, err := n.Attach(context.Background(), newPod(t))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "fake (ADD) did not end in time") || time.Since(start) > 5*time.Second {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
	// A caller that gives up ends the plugin too, and what it made is taken down all the same.
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := n.Attach(ctx, newPod(t)); err == nil {
		t.Error("no error")
	}
}

func TestCapabilities(t *testing.T) {
	n := newNode(t, ModeAuto)
	dir := n.fake(t)
	n.conf(t, "10.conflist", "1.0.0", `{"type":"fake","capabilities":{"portMappings":true,"bandwidth":true,"dns":true,"ipRanges":true,
		"io.kubernetes.cri.pod-annotations":true,"cgroupPath":true}}`)
	if err := n.SetPodCIDR(context.Background(), "10.1.0.0/24,fd01::/64"); err != nil {
		t.Fatal(err)
	}
	p := newPod(t)
	p.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "1.5Gi"}
	p.PortMappings = []PortMapping{{Protocol: "SCTP", HostPort: 8080, ContainerPort: 80, HostIP: "::1"}, {Protocol: "tcp", ContainerPort: 9}}
	p.DNS = DNS{Servers: []string{"1.1.1.1"}, Searches: []string{"a.b"}, Options: []string{"ndots:5"}}
	p.CgroupParent = "/kubepods/x"
	n.attach(t, p)
	stdin := read(t, dir+"/stdin-ADD")
	for _, want := range []string{
		`"portMappings":[{"containerPort":80,"hostIP":"::1","hostPort":8080,"protocol":"sctp"}]`,
		`"bandwidth":{"egressBurst":2147483647,"egressRate":1610612736,"ingressBurst":2147483647,"ingressRate":10000000}`,
		`"dns":{"options":["ndots:5"],"searches":["a.b"],"servers":["1.1.1.1"]}`,
		`"ipRanges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"fd01::/64"}]]`,
		`"io.kubernetes.cri.pod-annotations":{"kubernetes.io/egress-bandwidth":"1.5Gi","kubernetes.io/ingress-bandwidth":"10M"}`,
		`"cgroupPath":"/kubepods/x"`,
	} {
		if !strings.Contains(stdin, want) {
			t.Errorf("%s is missing in %s", want, stdin)
		}
	}
	env := read(t, dir+"/env-ADD")
	args := "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + p.Name + ";K8S_POD_INFRA_CONTAINER_ID=" + p.ID + ";K8S_POD_UID=" + p.UID
	for _, want := range []string{args, "CNI_CONTAINERID=" + p.ID, "CNI_IFNAME=eth0", "CNI_NETNS=" + p.NetNS, "CNI_PATH=" + dir} {
		if !strings.Contains(env, want+"\n") {
			t.Errorf("%s is missing in %s", want, env)
		}
	}
	// The configuration changes, the process restarts: DEL is given what ADD was.
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	n.conf(t, "10.conflist", "1.0.0", `{"type":"other"}`)
	n.open(t)
	n.detach(t, Pod{ID: p.ID, NetNS: p.NetNS})
	del := read(t, dir+"/stdin-DEL")
	for _, want := range []string{`"hostPort":8080`, `"prevResult":`, `"10.5.0.9/24"`, `"ipRanges"`} {
		if !strings.Contains(del, want) {
			t.Errorf("%s is missing in %s", want, del)
		}
	}
	if env := read(t, dir+"/env-DEL"); !strings.Contains(env, args+"\n") {
		t.Error(env)
	}
}

func TestBadPods(t *testing.T) {
	n := newNode(t, ModeEmbedded)
	good := newPod(t)
	for name, change := range map[string]func(*Pod){
		"no id":              func(p *Pod) { p.ID = "" },
		"id with a slash":    func(p *Pod) { p.ID = "../x" },
		"CNI_ARGS injection": func(p *Pod) { p.Name = "a;IP=10.88.0.99" },
		"port":               func(p *Pod) { p.PortMappings = []PortMapping{{Protocol: "tcp", HostPort: 70000, ContainerPort: 80}} },
		"container port":     func(p *Pod) { p.PortMappings = []PortMapping{{Protocol: "tcp", HostPort: 80}} },
		"protocol":           func(p *Pod) { p.PortMappings = []PortMapping{{Protocol: "icmp", HostPort: 80, ContainerPort: 80}} },
		"host address":       func(p *Pod) { p.PortMappings = []PortMapping{{HostPort: 80, ContainerPort: 80, HostIP: "x"}} },
		"bandwidth":          func(p *Pod) { p.Annotations = map[string]string{"kubernetes.io/egress-bandwidth": "fast"} },
	} {
		p := good
		change(&p)
		if _, err := n.Attach(context.Background(), p); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p := good
	p.NetNS = "/run/netns/none"
	if _, err := n.Attach(context.Background(), p); !errdefs.IsNotFound(err) {
		t.Errorf("no namespace: %v", err)
	}
	p.NetNS = "/etc/passwd"
	if _, err := n.Attach(context.Background(), p); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("not a namespace: %v", err)
	}
	for range 2 {
		if err := n.Detach(context.Background(), Pod{ID: "never-seen", NetNS: "/run/netns/none"}); err != nil {
			t.Error(err)
		}
	}
}

func TestUnsupported(t *testing.T) {
	for key, plugins := range map[string][]string{
		"vlan":                 {strings.Replace(bridgePlugin, `"isGateway"`, `"vlan":5,"isGateway"`, 1)},
		"macspoofchk":          {strings.Replace(bridgePlugin, `"isGateway"`, `"macspoofchk":true,"isGateway"`, 1)},
		"iptables":             {strings.Replace(bridgePlugin, `"isGateway"`, `"ipMasqBackend":"iptables","isGateway"`, 1)},
		"conditionsV4":         {bridgePlugin, `{"type":"portmap","conditionsV4":["ip","saddr","1.1.1.1"]}`},
		"externalSetMarkChain": {bridgePlugin, `{"type":"portmap","externalSetMarkChain":"X"}`},
		"masqAll":              {bridgePlugin, `{"type":"portmap","masqAll":true}`},
	} {
		t.Run(key, func(t *testing.T) {
			n := newNode(t, ModeAuto)
			n.conf(t, "10.conflist", "1.0.0", plugins...)
			if _, err := n.Attach(context.Background(), newPod(t)); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), key) {
				t.Error(err)
			}
		})
	}
	// The program of that name does it, where there is one.
	n := newNode(t, ModeAuto)
	n.fake(t)
	if err := os.Rename(n.cfg.BinDirs[0]+"/fake", n.cfg.BinDirs[0]+"/bridge"); err != nil {
		t.Fatal(err)
	}
	n.conf(t, "10.conflist", "1.0.0", strings.Replace(bridgePlugin, `"isGateway"`, `"vlan":5,"isGateway"`, 1))
	if r := n.attach(t, newPod(t)); r.IPs[0].String() != "10.5.0.9" {
		t.Error(r)
	}
}

func TestExternalIPAM(t *testing.T) {
	n := newNode(t, ModeAuto)
	dir := n.fake(t)
	write(t, dir+"/do-ADD", `echo '{"cniVersion":"1.0.0","ips":[{"address":"10.66.0.9/24"}]}'`)
	n.conf(t, "10.conflist", "1.0.0", `{"type":"bridge","isDefaultGateway":true,"ipam":{"type":"fake"}}`)
	p := newPod(t)
	r := n.attach(t, p)
	if r.IPs[0].String() != "10.66.0.9" || !strings.Contains(inNS(t, p.NetNS, "ip", "route"), "default via 10.66.0.1") {
		t.Error(r, inNS(t, p.NetNS, "ip", "route"))
	}
	n.detach(t, p)
	if calls := read(t, dir+"/calls"); calls != "ADD\nDEL\n" {
		t.Errorf("calls: %q", calls)
	}
}

func TestQuantity(t *testing.T) {
	for s, want := range map[string]uint64{"1": 1, "10M": 1e7, "1Ki": 1024, "1.5Gi": 1610612736, "1e6": 1e6, "1E3": 1000, "100m": 1, "2P": 2e15, "0.5k": 500} {
		if got, err := quantity(s); err != nil || got != want {
			t.Errorf("%s: %d %v", s, got, err)
		}
	}
	for _, s := range []string{"", "x", "-1", "1/2", "0x10", "1_000", "1e99999", "1MM", "M", strings.Repeat("9", 40), "99999E"} {
		if got, err := quantity(s); err == nil {
			t.Errorf("%s: %d", s, got)
		}
	}
}

func TestGC(t *testing.T) {
	n := newNode(t, ModeAuto)
	dir := n.fake(t)
	n.conf(t, "10.conflist", "1.1.0", bridgePlugin, `{"type":"portmap","capabilities":{"portMappings":true}}`, `{"type":"fake"}`)
	write(t, dir+"/do-ADD", `sed 's/.*"prevResult":\({.*}\),"type".*/\1/' "$d/stdin-ADD"`)
	live, dead := newPod(t), newPod(t)
	live.PortMappings = []PortMapping{{Protocol: "tcp", HostPort: 81, ContainerPort: 80}}
	dead.PortMappings = []PortMapping{{Protocol: "tcp", HostPort: 82, ContainerPort: 80}}
	n.attach(t, live)
	if _, err := n.Attach(context.Background(), dead); err != nil {
		t.Fatal(err)
	}
	// A crash between a lease and its result's record leaves the lease only.
	lost := n.cfg.StateDir + "/net/10.77.0.200"
	write(t, lost, strings.Repeat("f", 64)+"\r\neth0")
	if err := n.GC(context.Background(), map[string]bool{live.ID: true}); err != nil {
		t.Fatal(err)
	}
	if s := run(t, "nft", "list", "ruleset"); !strings.Contains(s, dead.ID) {
		t.Error("a pod of this process was collected")
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	n.open(t)
	if err := n.GC(context.Background(), map[string]bool{live.ID: true}); err != nil {
		t.Fatal(err)
	}
	s := run(t, "nft", "list", "ruleset")
	if strings.Contains(s, dead.ID) || !strings.Contains(s, live.ID) || !strings.Contains(s, ": 10.77.0.2 . 80") {
		t.Error(s)
	}
	left, _ := filepath.Glob(n.cfg.StateDir + "/net/10.*")
	if len(left) != 1 || filepath.Base(left[0]) != "10.77.0.2" {
		t.Errorf("leases: %v", left)
	}
	if !strings.Contains(read(t, dir+"/calls"), "GC\n") || !strings.Contains(read(t, dir+"/stdin-GC"), live.ID) || strings.Contains(read(t, dir+"/stdin-GC"), dead.ID) {
		t.Error("the plugin's GC was not run with the valid attachments")
	}
}

// TestGCLeavesForeignLeases: in a store that is not this server's alone, leases of pods that it knows nothing of are another
// runtime's; those of pods that were its own go.
func TestGCLeavesForeignLeases(t *testing.T) {
	pins, shared := t.TempDir(), t.TempDir()
	n := newNode(t, ModeAuto, func(c *Config) { c.NetnsDir = pins })
	n.conf(t, "10.conflist", "1.0.0", fmt.Sprintf(`{"type":"bridge","bridge":"brx","ipam":{"type":"host-local","dataDir":%q,"subnet":"10.78.0.0/24"}}`, shared))
	p := newPod(t)
	r := n.attach(t, p)
	foreign, gone := strings.Repeat("f", 64), strings.Repeat("e", 64)
	write(t, shared+"/net/10.78.0.200", foreign+"\r\neth0")
	write(t, shared+"/net/10.78.0.201", gone+"\r\neth0")
	write(t, pins+"/"+Prefix+gone, "") // the pin of a namespace that is no more
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	n.open(t) // what it attached itself it would keep
	garbage, err := n.Garbage(context.Background(), map[string]bool{})
	if err != nil {
		t.Error(err)
	}
	found := map[string]string{}
	for _, g := range garbage {
		if g.Kind == "address" {
			found[g.Name] = g.ID
		}
	}
	if len(found) != 2 || found["10.78.0.201"] != gone || found[r.IPs[0].String()] != p.ID {
		t.Errorf("addresses that are garbage: %v", found)
	}
	if err := n.GC(context.Background(), map[string]bool{}); err != nil {
		t.Error(err)
	}
	left, _ := filepath.Glob(shared + "/net/10.*")
	if len(left) != 1 || filepath.Base(left[0]) != "10.78.0.200" {
		t.Errorf("leases: %v", left)
	}
}
