package hostlocal

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func config(t testing.TB, dir, ipam, more string) *Config {
	t.Helper()
	c, err := Parse(fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"n","type":"x","ipam":{"type":"host-local","dataDir":%q,%s}%s}`, dir, ipam, more), "", "")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func add(t testing.TB, c *Config, id string) string {
	t.Helper()
	r, err := Add(context.Background(), c, id, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	var s []string
	for _, ip := range r.IPs {
		s = append(s, ip.Address.String())
	}
	return strings.Join(s, " ")
}

func TestAddresses(t *testing.T) {
	dir := t.TempDir()
	c := config(t, dir, `"ranges":[[{"subnet":"10.1.2.0/29"}],[{"subnet":"fd00::/64","rangeStart":"fd00::10"}]],"routes":[{"dst":"0.0.0.0/0"}]`, "")
	for i, want := range []string{"10.1.2.2/29 fd00::10/64", "10.1.2.3/29 fd00::11/64", "10.1.2.4/29 fd00::12/64"} {
		if got := add(t, c, fmt.Sprint("pod", i)); got != want {
			t.Errorf("%s, not %s", got, want)
		}
	}
	for name, want := range map[string]string{"10.1.2.2": "pod0\r\neth0" + mark(netip.MustParseAddr("10.1.2.2")), "last_reserved_ip.0": "10.1.2.4", "last_reserved_ip.1": "fd00::12"} {
		if b, err := os.ReadFile(filepath.Join(dir, "n", name)); err != nil || string(b) != want {
			t.Errorf("%s: %q %v", name, b, err)
		}
	}
	if _, err := Add(context.Background(), c, "pod0", "eth0"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("twice: %v", err)
	}
	if err := Check(context.Background(), c, "pod0", "eth0"); err != nil {
		t.Error(err)
	}
	// What is released is given last.
	if as, err := Del(context.Background(), c, "pod0", "eth0"); err != nil || len(as) != 2 {
		t.Errorf("%v %v", as, err)
	}
	if as, err := Del(context.Background(), c, "pod0", "eth0"); err != nil || len(as) != 0 {
		t.Errorf("%v %v", as, err)
	}
	for i, want := range []string{"10.1.2.5/29 ", "10.1.2.6/29 ", "10.1.2.2/29 "} {
		if got := add(t, c, fmt.Sprint("new", i)); !strings.HasPrefix(got, want) {
			t.Errorf("%s, not %s", got, want)
		}
	}
	_, err := Add(context.Background(), c, "late", "eth0")
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "10.1.2.1-10.1.2.6") {
		t.Errorf("exhausted: %v", err)
	}
	if err := GC(context.Background(), c.Dir, func(id, ifname string) bool { return id == "new1" && ifname == "eth0" }); err != nil {
		t.Fatal(err)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "n", "*[0-9:][.:]*"))
	if len(left) != 2 {
		t.Error(left)
	}
}

// The index must not hide what another process, such as the reference plugin, wrote.
func TestForeignChanges(t *testing.T) {
	dir := t.TempDir()
	c := config(t, dir, `"subnet":"10.1.2.0/24"`, "")
	add(t, c, "a")
	foreign := filepath.Join(dir, "n", "10.1.2.3")
	if err := os.WriteFile(foreign, []byte("other\r\neth0"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := add(t, c, "b"); got != "10.1.2.4/24" {
		t.Error(got)
	}
	if as, err := Del(context.Background(), c, "other", "eth0"); err != nil || len(as) != 1 {
		t.Errorf("%v %v", as, err)
	}
	if err := os.Remove(filepath.Join(dir, "n", "10.1.2.2")); err != nil {
		t.Fatal(err)
	}
	if err := Check(context.Background(), c, "a", "eth0"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
}

func TestLocked(t *testing.T) {
	c := config(t, t.TempDir(), `"subnet":"10.1.2.0/24"`, "")
	add(t, c, "a")
	f, err := os.Open(filepath.Join(c.Dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if _, err := Add(ctx, c, "b", "eth0"); err == nil || !strings.Contains(err.Error(), "locked by another process") {
		t.Error(err)
	}
}

func TestRequested(t *testing.T) {
	dir := t.TempDir()
	c := config(t, dir, `"ranges":[[{"subnet":"10.1.2.0/24"}]]`, `,"runtimeConfig":{"ips":["10.1.2.77/24"]}`)
	if got := add(t, c, "a"); got != "10.1.2.77/24" {
		t.Error(got)
	}
	if _, err := Add(context.Background(), c, "b", "eth0"); !errdefs.IsAlreadyExists(err) {
		t.Error(err)
	}
	for _, ip := range []string{"10.1.2.1", "10.9.9.9"} {
		c.Requested = []netip.Addr{netip.MustParseAddr(ip)}
		if _, err := Add(context.Background(), c, "c", "eth0"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", ip, err)
		}
	}
	if err := Check(context.Background(), c, "c", "eth0"); !errdefs.IsNotFound(err) {
		t.Errorf("an address is kept after an error: %v", err)
	}
}

func TestBadConfig(t *testing.T) {
	for name, ipam := range map[string]string{
		"no range":     `"type":"host-local"`,
		"not a subnet": `"subnet":"10.1.2.3"`,
		"host bits":    `"subnet":"10.1.2.3/24"`,
		"too small":    `"subnet":"10.1.2.0/31"`,
		"start":        `"subnet":"10.1.2.0/24","rangeStart":"10.1.3.1"`,
		"end":          `"subnet":"10.1.2.0/24","rangeEnd":"fd00::1"`,
		"reversed":     `"subnet":"10.1.2.0/24","rangeStart":"10.1.2.9","rangeEnd":"10.1.2.3"`,
		"overlap":      `"ranges":[[{"subnet":"10.1.2.0/24"},{"subnet":"10.1.0.0/16"}]]`,
		"overlap sets": `"ranges":[[{"subnet":"10.1.2.0/24"}],[{"subnet":"10.1.0.0/16"}]]`,
		"mixed":        `"ranges":[[{"subnet":"10.1.2.0/24"},{"subnet":"fd00::/64"}]]`,
		"empty set":    `"ranges":[[]]`,
		"gateway":      `"subnet":"10.1.2.0/24","gateway":"x"`,
	} {
		if _, err := Parse([]byte(`{"name":"n","ipam":{`+ipam+`}}`), "", "/x"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, conf := range []string{`{"name":"../n","ipam":{"subnet":"10.1.2.0/24"}}`, `{"name":"n"}`} {
		if _, err := Parse([]byte(conf), "", "/x"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", conf, err)
		}
	}
	if _, err := Parse([]byte(`{"name":"n","ipam":{"subnet":"10.1.2.0/24"}}`), "IP=nonsense", "/x"); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}

func TestParallel(t *testing.T) {
	c := config(t, t.TempDir(), `"subnet":"10.1.2.0/24"`, "")
	var wg sync.WaitGroup
	var seen sync.Map
	for i := range 100 {
		wg.Go(func() {
			r, err := Add(context.Background(), c, fmt.Sprint(i), "eth0")
			if err != nil {
				t.Error(err)
				return
			}
			if _, dup := seen.LoadOrStore(r.IPs[0].Address.String(), i); dup {
				t.Errorf("%s was given twice", r.IPs[0].Address.String())
			}
		})
	}
	wg.Wait()
}

func TestResolvConf(t *testing.T) {
	dir := t.TempDir()
	f := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(f, []byte("# c\nnameserver 1.1.1.1\nsearch a b\ndomain d\noptions x y\njunk\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Add(context.Background(), config(t, dir, fmt.Sprintf(`"subnet":"10.1.2.0/24","resolvConf":%q`, f), ""), "a", "eth0")
	if err != nil || fmt.Sprint(r.DNS) != "{[1.1.1.1] d [a b] [x y]}" {
		t.Errorf("%v %v", r, err)
	}
}

func BenchmarkAddDel(b *testing.B) {
	c := config(b, b.TempDir(), `"subnet":"10.1.0.0/16"`, "")
	for i := range 500 {
		add(b, c, fmt.Sprint("old", i))
	}
	for b.Loop() {
		add(b, c, "new")
		if _, err := Del(context.Background(), c, "new", "eth0"); err != nil {
			b.Fatal(err)
		}
	}
}

// A lease without an owner is what a writer leaves that was killed before its first byte: it is given again, and is not
// there afterwards.
func TestLeaseWithoutAnOwner(t *testing.T) {
	dir := t.TempDir()
	c := config(t, dir, `"ranges":[[{"subnet":"10.1.2.0/29"}]]`, "")
	if err := os.MkdirAll(filepath.Join(dir, "n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"10.1.2.2", "10.1.2.5"} {
		if err := os.WriteFile(filepath.Join(dir, "n", a), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := add(t, c, "pod"); got != "10.1.2.2/29" {
		t.Errorf("the first address is %s", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "n", "10.1.2.5")); !os.IsNotExist(err) {
		t.Errorf("the other is still taken: %v", err)
	}
}

// A lease has its owner from the moment it has a name.
func TestLeaseIsWrittenAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lease")
	for i, want := range []error{nil, os.ErrExist} {
		if err := writeNew(path, fmt.Sprint("owner", i)); !errors.Is(err, want) {
			t.Errorf("%d: %v, want %v", i, err, want)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != "owner0" {
			t.Errorf("%q %v", b, err)
		}
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("%v", left)
	}
	if err := writeNew(filepath.Join(path, "in a file"), "x"); err == nil {
		t.Error("a directory that is none")
	}
}
