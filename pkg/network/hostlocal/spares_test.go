package hostlocal

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func spares(t *testing.T, c *Config) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(c.Dir, sparePrefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func del(t *testing.T, c *Config, id string) {
	t.Helper()
	if as, err := Del(context.Background(), c, id, "eth0"); err != nil || len(as) != 1 {
		t.Fatalf("%v %v", as, err)
	}
}

// TestSpares: a released lease's file is that of a later one, with nothing of the former owner in it, and is no lease meanwhile; so
// it is after a restart.
func TestSpares(t *testing.T) {
	for name, between := range map[string]func(c *Config){
		"at once":         func(*Config) {},
		"after a restart": func(c *Config) { stores.Delete(c.Dir) },
	} {
		t.Run(name, func(t *testing.T) {
			c := config(t, t.TempDir(), `"subnet":"10.1.2.0/24"`, "")
			add(t, c, "a long name of a pod")
			before, err := os.Stat(filepath.Join(c.Dir, "10.1.2.2"))
			if err != nil {
				t.Fatal(err)
			}
			del(t, c, "a long name of a pod")
			if got := spares(t, c); len(got) != 1 {
				t.Fatalf("spares: %v", got)
			}
			if list, err := All(context.Background(), c.Dir); err != nil || len(list) != 0 {
				t.Errorf("leases: %v %v", list, err)
			}
			if as, err := Leases(context.Background(), c, "a long name of a pod", "eth0"); err != nil || len(as) != 0 {
				t.Errorf("%v %v", as, err)
			}
			between(c)
			if got := add(t, c, "b"); got != "10.1.2.3/24" {
				t.Error(got)
			}
			lease := filepath.Join(c.Dir, "10.1.2.3")
			after, err := os.Stat(lease)
			if err != nil || !os.SameFile(before, after) {
				t.Errorf("another file (%v)", err)
			}
			if b, err := os.ReadFile(lease); err != nil || strings.TrimSpace(string(b)) != "b\r\neth0" {
				t.Errorf("%q %v", b, err)
			}
			if got := spares(t, c); len(got) != 0 {
				t.Errorf("spares: %v", got)
			}
		})
	}
}

// TestSparesOfNoUse: what stands where a spare was is not written to, and a lease is made all the same.
func TestSparesOfNoUse(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	for name, change := range map[string]func(spare string) error{
		"removed":         os.Remove,
		"with a link":     func(s string) error { return os.Link(s, outside) },
		"of another mode": func(s string) error { return os.Chmod(s, 0o644) },
		"a symbolic link": func(s string) error {
			if err := os.Remove(s); err != nil {
				return err
			}
			return os.Symlink(outside, s)
		},
		"a directory": func(s string) error {
			if err := os.Remove(s); err != nil {
				return err
			}
			return os.Mkdir(s, 0o755)
		},
	} {
		t.Run(name, func(t *testing.T) {
			_ = os.Remove(outside)
			c := config(t, t.TempDir(), `"subnet":"10.1.2.0/24"`, "")
			add(t, c, "a")
			del(t, c, "a")
			if err := change(spares(t, c)[0]); err != nil {
				t.Fatal(err)
			}
			add(t, c, "b")
			if b, err := os.ReadFile(filepath.Join(c.Dir, "10.1.2.3")); err != nil || strings.TrimSpace(string(b)) != "b\r\neth0" {
				t.Errorf("%q %v", b, err)
			}
			if b, err := os.ReadFile(outside); err == nil && strings.TrimSpace(string(b)) != "a\r\neth0" {
				t.Errorf("written through the link: %q", b)
			}
		})
	}
}

// TestStaleLeases: a used file that has a lease's name, and after a power cut not its text, is no lease. Others' leases are.
func TestStaleLeases(t *testing.T) {
	for name, tt := range map[string]struct {
		name, text string
		lease      bool
	}{
		"ours":                 {"10.1.2.200", "a\r\neth0" + mark(netip.MustParseAddr("10.1.2.200")), true},
		"the reference's":      {"10.1.2.200", "a\r\neth0", true},
		"an old one's":         {"10.1.2.200", "a", true},
		"edited":               {"10.1.2.200", "a\r\neth0 \n", true},
		"IPv6":                 {"fd00::5", "a\r\neth0" + mark(netip.MustParseAddr("fd00::5")), true},
		"another address":      {"10.1.2.200", "a\r\neth0" + mark(netip.MustParseAddr("10.1.2.201")), false},
		"another, cut short":   {"10.1.2.200", ("a\r\neth0" + mark(netip.MustParseAddr("fd00::5")))[:60], false},
		"another IPv6 address": {"fd00::5", "a\r\neth0" + mark(netip.MustParseAddr("fd00::6")), false},
		"of the other family":  {"fd00::5", "a\r\neth0" + mark(netip.MustParseAddr("10.1.2.200")), false},
		"longer":               {"10.1.2.200", "a\r\neth0" + strings.Repeat("\x00", 33), false},
		"empty":                {"10.1.2.200", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			c := config(t, t.TempDir(), `"subnet":"10.1.2.0/24"`, "")
			add(t, c, "b")
			path := filepath.Join(c.Dir, tt.name)
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			list, err := All(context.Background(), c.Dir)
			if _, serr := os.Stat(path); err != nil || (len(list) == 2) != tt.lease || (serr == nil) != tt.lease {
				t.Errorf("%v %v, %v", list, err, serr)
			}
			if ok, err := Leases(context.Background(), c, "a", "eth0"); err != nil || (len(ok) == 1) != tt.lease {
				t.Errorf("%v %v", ok, err)
			}
		})
	}
}

// TestSpareOfATakenAddress: an address that somebody else took is not overwritten.
func TestSpareOfATakenAddress(t *testing.T) {
	c := config(t, t.TempDir(), `"subnet":"10.1.2.0/24"`, "")
	add(t, c, "a")
	del(t, c, "a")
	foreign := filepath.Join(c.Dir, "10.1.2.3")
	if err := os.Mkdir(foreign, 0o755); err != nil { // no lease that load would read
		t.Fatal(err)
	}
	if got := add(t, c, "b"); got != "10.1.2.4/24" {
		t.Error(got)
	}
	if st, err := os.Stat(foreign); err != nil || !st.IsDir() {
		t.Errorf("%v %v", st, err)
	}
}

// TestReleaseWithoutRoom: where there is no room for the name of a spare, as on a full disk, an address is released all the same.
func TestReleaseWithoutRoom(t *testing.T) {
	renameLease = func(string, string) error { return unix.ENOSPC }
	t.Cleanup(func() { renameLease = unix.Rename })
	c := config(t, t.TempDir(), `"subnet":"10.1.2.0/24"`, "")
	add(t, c, "a")
	del(t, c, "a")
	if left, err := os.ReadDir(c.Dir); err != nil || len(left) != 2 { // lock, last_reserved_ip.0
		t.Errorf("%v %v", left, err)
	}
}
