package network

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
)

func TestMain(m *testing.M) { testns.Main(m) }

// node is one Network with directories of its own.
type node struct {
	*CNI
	cfg Config
	log *bytes.Buffer
}

func newNode(t testing.TB, mode string, change ...func(*Config)) *node {
	t.Helper()
	testns.Root(t)
	dir := t.TempDir()
	n := &node{log: &bytes.Buffer{}}
	n.cfg = Config{ConfDir: dir + "/etc/net.d", BinDirs: []string{dir + "/bin"}, CacheDir: dir + "/cache", Mode: mode,
		StateDir: dir + "/leases", PodCIDRs: []string{"10.88.0.0/16", "fd88::/64"}, Logger: slog.New(slog.NewTextHandler(&syncWriter{w: n.log}, nil))}
	for _, c := range change {
		c(&n.cfg)
	}
	n.open(t)
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		n.leakCheck(t)
		run(t, "nft", "flush", "ruleset")
		for _, link := range []string{"cri0", "cni0", "ref0"} {
			_ = exec.Command("ip", "link", "del", link).Run()
		}
	})
	return n
}

func (n *node) open(t testing.TB) {
	t.Helper()
	c, err := New(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.CNI = c
}

type syncWriter struct {
	mu atomic.Int32
	w  io.Writer
}

func (s *syncWriter) Write(p []byte) (int, error) {
	for !s.mu.CompareAndSwap(0, 1) {
		time.Sleep(time.Microsecond)
	}
	defer s.mu.Store(0)
	return s.w.Write(p)
}

// leakCheck: no lease, no cached result, no nftables element, no veth, no pin is left.
func (n *node) leakCheck(t testing.TB) {
	t.Helper()
	leases, _ := filepath.Glob(n.cfg.StateDir + "/*/*")
	for _, l := range leases {
		if _, err := netip.ParseAddr(filepath.Base(l)); err == nil {
			t.Errorf("lease left: %s", l)
		}
	}
	if left, _ := filepath.Glob(n.cfg.CacheDir + "/results/*"); len(left) > 0 {
		t.Errorf("results left: %v", left)
	}
	if s := run(t, "nft", "list", "ruleset"); strings.Contains(s, "elements") {
		t.Errorf("nftables elements left:\n%s", s)
	}
	if names, _ := netns.List("/run/netns", Prefix); len(names) > 0 {
		t.Errorf("namespaces left: %v", names)
	}
	var links string
	for range 100 {
		if links = run(t, "ip", "-o", "link", "show", "type", "veth"); links == "" {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("links left:\n%s", links)
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// inNS runs a command in a pod's or the outside's namespace.
func inNS(t testing.TB, ns string, args ...string) string {
	t.Helper()
	return run(t, "nsenter", append([]string{"--net=" + ns}, args...)...)
}

var podNumber atomic.Int32

func newPod(t testing.TB) Pod {
	t.Helper()
	i := podNumber.Add(1)
	p := Pod{ID: fmt.Sprintf("%064x", i), Namespace: "default", Name: fmt.Sprint("pod", i), UID: fmt.Sprint("uid-", i)}
	path, err := netns.Create("/run/netns", Prefix+p.ID)
	if err != nil {
		t.Fatal(err)
	}
	p.NetNS = path
	t.Cleanup(func() {
		if err := netns.Remove(path); err != nil {
			t.Error(err)
		}
	})
	return p
}

func (n *node) attach(t testing.TB, p Pod) *Result {
	t.Helper()
	r, err := n.Attach(context.Background(), p)
	if err != nil {
		t.Fatalf("%v\n%s", err, n.log)
	}
	t.Cleanup(func() { n.detach(t, p) })
	return r
}

func (n *node) detach(t testing.TB, p Pod) {
	t.Helper()
	if err := n.Detach(context.Background(), p); err != nil {
		t.Error(err)
	}
}

// listen serves on network and address in ns: it answers with the peer's address, then hangs up.
func listen(t testing.TB, ns, network, address string) {
	t.Helper()
	var closer io.Closer
	err := netns.Do(ns, func() error {
		if strings.HasPrefix(network, "udp") {
			c, err := net.ListenPacket(network, address)
			if err != nil {
				return err
			}
			closer = c
			go func() {
				b := make([]byte, 100)
				for {
					_, from, err := c.ReadFrom(b)
					if err != nil {
						return
					}
					_, _ = c.WriteTo([]byte(from.String()), from)
				}
			}()
			return nil
		}
		l, err := net.Listen(network, address)
		if err != nil {
			return err
		}
		closer = l
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = c.Write([]byte(c.RemoteAddr().String()))
				_ = c.Close()
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = closer.Close() })
}

// dial calls address from ns and returns whom the server saw, without the port; an error's text where it fails.
func dial(ns, network, address string) string {
	var c net.Conn
	err := netns.Do(ns, func() (err error) {
		c, err = net.DialTimeout(network, address, 2*time.Second)
		return err
	})
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := c.Write([]byte("x")); err != nil {
		return err.Error()
	}
	b := make([]byte, 100)
	k, err := c.Read(b)
	if err != nil {
		return err.Error()
	}
	seen, err := netip.ParseAddrPort(string(b[:k]))
	if err != nil {
		return string(b[:k])
	}
	return seen.Addr().Unmap().String()
}

const hostNS = "/proc/thread-self/ns/net"

// outside is another machine: a namespace linked to the host, which knows no route to pods.
func outside(t testing.TB) string {
	t.Helper()
	path, err := netns.Create("/run/netns", "outside")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = exec.Command("ip", "link", "del", "up0").Run()
		if err := netns.Remove(path); err != nil {
			t.Error(err)
		}
	})
	run(t, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", "outside")
	run(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "up0")
	run(t, "ip", "-6", "addr", "add", "2001:db8::1/64", "dev", "up0", "nodad")
	run(t, "ip", "link", "set", "up0", "up")
	inNS(t, path, "ip", "addr", "add", "192.0.2.2/24", "dev", "eth0")
	inNS(t, path, "ip", "-6", "addr", "add", "2001:db8::2/64", "dev", "eth0", "nodad")
	inNS(t, path, "ip", "link", "set", "eth0", "up")
	return path
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}
