package cgroupdriver

import (
	"os"
	"path"
	"testing"
	"time"
)

// TestScopeThatSystemdKeeps: one that systemd knows although its cgroup is gone, because it was not told of the end, is stopped;
// one that was made anew meanwhile is not.
func TestScopeThatSystemdKeeps(t *testing.T) {
	d, s := onSystemd(t)
	p1, cg := create(t, d, nil)
	c := spawn(t, cg, "exec sleep 100")
	until(t, "the process to join", func() bool { return joined(d, p1, c) })
	d.Settle(p1, 0)
	due := func() {
		for p, l := range s.going.since {
			s.going.since[p] = leaving{l.at.Add(-time.Hour), l.file}
		}
		s.look()
	}
	s.lookAfter(p1)
	if len(s.going.since) != 1 || !s.going.armed {
		t.Fatal("nobody will look")
	}
	due()
	if got := show(t, path.Base(p1), "ActiveState"); got != "active" {
		t.Errorf("a scope with a process is %s", got)
	}
	if n := len(s.going.since); n != 0 {
		t.Errorf("%d scopes are still to be looked at", n)
	}
	// Another one of that name, by which a look at the first finds out.
	s.lookAfter(p1)
	other := path.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	st, err := os.Lstat(other)
	if err != nil {
		t.Fatal(err)
	}
	s.going.since[p1] = leaving{time.Now(), st}
	if due(); len(s.going.since) != 0 {
		t.Error("another scope is taken for the one that was deleted")
	}
	// Whatever became of the process, nothing is left after a Delete and a look.
	s.lookAfter(p1)
	if err := d.Delete(t.Context(), p1); err != nil {
		t.Error(err)
	}
	due()
	until(t, "systemd to forget the scope", gone(t, path.Base(p1)))
	_ = c.Wait()
}

// TestScopeMadeAgain right after its end.
func TestScopeMadeAgain(t *testing.T) {
	d, _ := onSystemd(t)
	for range 20 {
		p1, _ := create(t, d, nil)
		d.Settle(p1, 0)
		if err := d.Delete(t.Context(), p1); err != nil {
			t.Fatal(err)
		}
	}
}

// TestScopesUnseen: where systemd's files can't be seen, it is taken to know a scope; without the file it does not.
func TestScopesUnseen(t *testing.T) {
	g := &going{dir: t.TempDir(), since: map[string]leaving{"/a.slice/cri-1.scope": {}}}
	if _, known := g.seen("/a.slice/cri-1.scope"); known {
		t.Error("no file, but known")
	}
	if due := g.due(time.Now()); len(due) != 0 || len(g.since) != 0 {
		t.Errorf("%v, %v", due, g.since)
	}
	g = &going{dir: path.Join(g.dir, "none"), since: map[string]leaving{"/a.slice/cri-1.scope": {}}}
	if due := g.due(time.Now()); len(due) != 1 {
		t.Errorf("no directory: %v", due)
	}
}
