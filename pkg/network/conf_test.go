package network

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

// eventually polls until f is true: the watch tells in its own time.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testns.Patience(5 * time.Second)); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not in time", what)
		}
	}
}

func TestStatus(t *testing.T) {
	n := newNode(t, ModeAuto)
	want := func(parts ...string) {
		t.Helper()
		err := n.Status()
		if err == nil {
			t.Fatal("no error")
		}
		for _, p := range parts {
			if !strings.Contains(err.Error(), p) {
				t.Errorf("%q is missing in %q", p, err)
			}
		}
		if !errdefs.IsUnavailable(err) {
			t.Errorf("kind of %v", err)
		}
	}
	want("no CNI configuration in "+n.cfg.ConfDir, "it does not exist", "--network embedded")
	if _, err := n.Attach(context.Background(), newPod(t)); !errdefs.IsUnavailable(err) {
		t.Error(err)
	}
	if err := os.MkdirAll(n.cfg.ConfDir, 0o755); err != nil {
		t.Fatal(err)
	}
	want("it is empty")
	write(t, n.cfg.ConfDir+"/readme.txt", "x")
	want("no .conflist, .conf or .json")
	write(t, n.cfg.ConfDir+"/10-bad.conflist", "{not json")
	write(t, n.cfg.ConfDir+"/11-empty.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[]}`)
	write(t, n.cfg.ConfDir+"/12-name.conflist", `{"cniVersion":"1.0.0","name":"../x","plugins":[{"type":"bridge"}]}`)
	want("10-bad.conflist", "invalid character", "11-empty.conflist: ", "12-name.conflist: ")
	n.conf(t, "20.conflist", "1.0.0", bridgePlugin, `{"type":"fake"}`)
	want(`plugin "fake" is not in `+n.cfg.BinDirs[0], "20.conflist")
	if !strings.Contains(n.log.String(), "10-bad.conflist") {
		t.Error("what is passed over is not logged")
	}
	n.fake(t)
	if err := n.Status(); err != nil {
		t.Error(err)
	}
	// CNI 1.1 plugins say themselves whether they are ready.
	write(t, n.cfg.BinDirs[0]+"/do-STATUS", `echo '{"cniVersion":"1.1.0","code":50,"msg":"no uplink"}'; exit 1`)
	n.conf(t, "05.conflist", "1.1.0", bridgePlugin, `{"type":"fake"}`)
	want("no uplink", "05.conflist")
	if err := os.Remove(n.cfg.ConfDir + "/05.conflist"); err != nil {
		t.Fatal(err)
	}
	if err := n.Status(); err != nil {
		t.Error(err)
	}
	write(t, n.cfg.ConfDir+"/01.conf", `{"cniVersion":"1.0.0","name":"single","type":"bridge","ipam":{"type":"host-local","subnet":"10.78.0.0/24"}}`)
	if r := n.attach(t, newPod(t)); r.Network != "single" {
		t.Error(r.Network)
	}
}

func TestConcerns(t *testing.T) {
	for path, want := range map[string]bool{
		"/etc/cni/net.d": true, "/etc/cni/net.d/10-a.conflist": true, "/etc/cni/net.d/net/a.conf": true, "/etc/cni": true, "/etc": true, "/": true,
		"//etc":        true, // as the watch of / tells it
		"/etc/cni/log": false, "/etc/cni/net.d.bak": false, "/etc/cn": false, "/etc/passwd": false,
	} {
		if concerns(path, "/etc/cni/net.d") != want {
			t.Errorf("%s: %v", path, !want)
		}
	}
}

// TestWatch looks at what the watch alone does: nobody asks in between.
func TestWatch(t *testing.T) {
	n := newNode(t, ModeAuto)
	loaded := func() string {
		n.CNI.conf.mu.Lock()
		defer n.CNI.conf.mu.Unlock()
		if n.CNI.conf.list == nil {
			return ""
		}
		return filepath.Base(n.CNI.conf.list.file)
	}
	n.conf(t, "20.conflist", "1.0.0", bridgePlugin) // makes the directory and its parent
	eventually(t, "a new directory", func() bool { return loaded() == "20.conflist" })
	n.conf(t, "10.conflist", "1.0.0", bridgePlugin)
	eventually(t, "an earlier file", func() bool { return loaded() == "10.conflist" })
	if err := os.RemoveAll(filepath.Dir(n.cfg.ConfDir)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the directory is gone", func() bool { return loaded() == "" })
	n.conf(t, "30.conflist", "1.0.0", bridgePlugin)
	eventually(t, "the directory is back", func() bool { return loaded() == "30.conflist" })
}

// TestUnchanged: whatever happens to a directory that has been as it is for a while, or has just changed, is seen by who asks next.
func TestUnchanged(t *testing.T) {
	d := confDir{dir: t.TempDir() + "/net.d", log: slog.New(slog.DiscardHandler)}
	conf := func(name string) string {
		return `{"cniVersion":"1.0.0","name":"` + name + `","plugins":[{"type":"bridge"}]}`
	}
	long, justNow := time.Now().Add(-time.Hour), time.Now().Add(time.Hour) // for as long as the test takes
	in := func(name string) string { return filepath.Join(d.dir, name) }
	remove := func(name string) {
		if err := os.Remove(in(name)); err != nil {
			t.Fatal(err)
		}
	}
	current := func() string {
		l, err := d.current()
		if err != nil {
			return ""
		}
		return fmt.Sprint(l.Name, " ", len(l.Plugins))
	}
	for name, change := range map[string]struct {
		do   func()
		want string
	}{
		"nothing":              {func() {}, "b 1"},
		"a file before it":     {func() { write(t, in("a.conflist"), conf("a")) }, "a 1"},
		"a file after it":      {func() { write(t, in("c.conflist"), conf("c")) }, "b 1"},
		"its text":             {func() { write(t, in("b.conflist"), conf("bb")) }, "bb 1"},
		"it is gone":           {func() { remove("b.conflist") }, ""},
		"another in its stead": {func() { write(t, in("x"), conf("x")); _ = os.Rename(in("x"), in("b.conflist")) }, "x 1"},
		"a plugin":             {func() { write(t, in("b/1.conf"), `{"type":"portmap"}`) }, "b 2"},
		"all is gone":          {func() { _ = os.RemoveAll(d.dir) }, ""},
	} {
		for _, age := range []time.Time{long, justNow} {
			_ = os.RemoveAll(d.dir)
			write(t, in("b.conflist"), conf("b"))
			if err := os.Mkdir(in("b"), 0o755); err != nil {
				t.Fatal(err)
			}
			for _, f := range []string{in("b"), d.dir} {
				if err := os.Chtimes(f, age, age); err != nil {
					t.Fatal(err)
				}
			}
			if got := current(); got != "b 1" {
				t.Fatalf("%s: before: %q", name, got)
			}
			if known := d.unchanged(); known != (age == long) {
				t.Errorf("%s: taken as it is: %v", name, known)
			}
			change.do()
			if got := current(); got != change.want {
				t.Errorf("%s, changed at %v: %q", name, age, got)
			}
		}
	}
}

// TestUnchangedLinks: what a link names is not in the directory, and comes and goes without a change there.
func TestUnchangedLinks(t *testing.T) {
	d := confDir{dir: t.TempDir() + "/net.d", log: slog.New(slog.DiscardHandler)}
	elsewhere := t.TempDir()
	write(t, d.dir+"/b.conflist", `{"cniVersion":"1.0.0","name":"b","plugins":[{"type":"bridge"}]}`)
	write(t, d.dir+"/b/1.conf", `{"type":"portmap"}`)
	if err := os.Symlink(elsewhere+"/a", d.dir+"/a.conflist"); err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-time.Hour)
	for _, dir := range []string{d.dir, d.dir + "/b"} { // they are not touched from now on
		if err := os.Chtimes(dir, long, long); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want string) {
		t.Helper()
		for range 2 { // the second time it may be as it was
			l, err := d.current()
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(l.Name, " ", len(l.Plugins)); got != want {
				t.Errorf("%s, not %s", got, want)
			}
		}
	}
	check("b 2")
	write(t, elsewhere+"/a", `{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge"}]}`)
	check("a 1")
	if !d.unchanged() {
		t.Error("looked at again")
	}
	if err := os.Remove(elsewhere + "/a"); err != nil {
		t.Fatal(err)
	}
	check("b 2")
}

// TestUnchangedWholeSeconds: a file that comes in the second of another, where times are whole seconds, is seen.
func TestUnchangedWholeSeconds(t *testing.T) {
	d := confDir{dir: t.TempDir() + "/net.d", log: slog.New(slog.DiscardHandler)}
	write(t, d.dir+"/b.conflist", `{"cniVersion":"1.0.0","name":"b","plugins":[{"type":"bridge"}]}`)
	before := time.Now().Add(-time.Second)
	if err := os.Chtimes(d.dir, before, before); err != nil {
		t.Fatal(err)
	}
	if _, err := d.current(); err != nil || d.unchanged() {
		t.Errorf("%v, taken as it is: %v", err, d.unchanged())
	}
}

// TestConfNotReadOnce: a file that can't be read just now is tried again, and one that is wrong is not.
func TestConfNotReadOnce(t *testing.T) {
	for name, again := range map[string]bool{"/proc/self/mem": true, "/dev/null": false} { // reading from the former is EIO
		d := confDir{dir: t.TempDir(), log: slog.New(slog.DiscardHandler)}
		if err := os.Symlink(name, d.dir+"/a.conflist"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d.dir+"/b.conflist", []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := d.current(); !errdefs.IsUnavailable(err) || len(d.stamp) == 0 != again {
			t.Errorf("%s: %v, %v", name, err, d.stamp)
		}
	}
}

func TestPluginDirectory(t *testing.T) {
	n := newNode(t, ModeAuto)
	n.fake(t)
	write(t, n.cfg.ConfDir+"/10.conflist", `{"cniVersion":"1.0.0","name":"net"}`)
	write(t, n.cfg.ConfDir+"/net/1.conf", `{"type":"fake","x":12345678901234567890}`)
	p := newPod(t)
	// A file that was seen half written is read again when it changes.
	eventually(t, "the configuration is loaded", func() bool { return n.Status() == nil })
	n.attach(t, p)
	if !strings.Contains(read(t, n.cfg.BinDirs[0]+"/stdin-ADD"), `"type":"fake"`) {
		t.Error("the plugin in the directory was not run")
	}
	if err := os.RemoveAll(n.cfg.ConfDir + "/net"); err != nil {
		t.Fatal(err)
	}
	n.detach(t, p)
	if read(t, n.cfg.BinDirs[0]+"/calls") != "ADD\nDEL\n" {
		t.Error("DEL forgot the plugin in the directory")
	}
}

func TestPodCIDR(t *testing.T) {
	n := newNode(t, ModeEmbedded)
	old := newPod(t)
	n.attach(t, old)
	ctx := context.Background()
	for _, bad := range []string{"x", "10.1.0.0/24,10.2.0.0/24", "10.0.0.0/31", "127.0.0.0/8", "::ffff:10.0.0.0/100"} {
		if err := n.SetPodCIDR(ctx, bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	for _, none := range []string{"", " ", ","} {
		if err := n.SetPodCIDR(ctx, none); err != nil {
			t.Errorf("%q: %v", none, err)
		}
	}
	if err := n.SetPodCIDR(ctx, "10.55.3.0/24"); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	n.open(t) // the range outlives the process
	p := newPod(t)
	if r := n.attach(t, p); len(r.IPs) != 1 || r.IPs[0].String() != "10.55.3.2" {
		t.Error(r.IPs)
	}
	listen(t, old.NetNS, "tcp", ":80")
	if got := dial(hostNS, "tcp", "10.88.0.2:80"); got != "10.88.0.1" {
		t.Errorf("a pod of the former range lost its gateway: %s", got)
	}
	if got := dial(p.NetNS, "tcp", "10.88.0.2:80"); !strings.HasPrefix(got, "10.") {
		t.Errorf("the ranges don't reach each other: %s", got)
	}
}

func TestBadConfig(t *testing.T) {
	for _, c := range []Config{{Mode: "magic"}, {PodCIDRs: []string{"10.0.0.0"}}} {
		c.CacheDir = t.TempDir()
		if _, err := New(c); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
