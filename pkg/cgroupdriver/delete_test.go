package cgroupdriver

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestScopeThatSystemdKeeps: one that systemd knows although its cgroup is gone, because it looked too late, is stopped.
func TestScopeThatSystemdKeeps(t *testing.T) {
	d, s := onSystemd(t)
	p1, _ := create(t, d, nil)
	s.places.end(p1)
	if err := s.cgroupfs.Delete(t.Context(), p1); err != nil { // by somebody else, before systemd looks, or not
		t.Error(err)
	}
	if err := s.stop(t.Context(), path.Base(p1)); err != nil {
		t.Error(err)
	}
	until(t, "systemd to forget the scope", gone(t, path.Base(p1)))
}

// TestScopesGoByThemselves: nothing is left of many, which end at the same time, and no job is needed for most.
func TestScopesGoByThemselves(t *testing.T) {
	d, _ := onSystemd(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 10 {
				p1, _ := d.Path("", fmt.Sprintf("c%d-%d", i, n))
				if _, err := d.Create(t.Context(), p1, nil); err != nil {
					t.Error(err)
				}
				d.Settle(p1, 0)
				if err := d.Delete(t.Context(), p1); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	until(t, "systemd to forget all scopes", func() bool {
		left, err := filepath.Glob(transientDir + "/cri-c*.scope")
		return err == nil && len(left) == 0
	})
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

// TestUnknownScope: where systemd's files can't be seen, it is taken to know a scope; without the file it does not.
func TestUnknownScope(t *testing.T) {
	defer func(dir string) { transientDir = dir }(transientDir)
	transientDir = t.TempDir()
	if !unknown("cri-1.scope") {
		t.Error("no file, but known")
	}
	if err := os.WriteFile(path.Join(transientDir, "cri-1.scope"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if unknown("cri-1.scope") {
		t.Error("a file, but unknown")
	}
	if transientDir = path.Join(transientDir, "none"); unknown("cri-1.scope") {
		t.Error("no directory: nothing is known")
	}
}

// TestScopeBegun: systemd takes over a directory that a process is in already.
func TestScopeBegun(t *testing.T) {
	d, s := onSystemd(t)
	p1, err := d.Path("", "c1")
	if err != nil {
		t.Fatal(err)
	}
	systemctl(t, "start", parent())
	res := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(64 << 20))}}
	cg, finish, err := s.Begin(t.Context(), p1, res)
	if err != nil || finish == nil {
		t.Fatalf("%v, finish is nil: %v", err, finish == nil)
	}
	early := exec.Command("sleep", "100")
	if err := early.Start(); err != nil {
		t.Fatal(err)
	}
	begun := !d.v2 && cg.Unified != ""
	if begun {
		if err := write(cg.Unified, "cgroup.procs", strconv.Itoa(early.Process.Pid)); err != nil {
			t.Error(err)
		}
	}
	if err := finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := show(t, path.Base(p1), "ActiveState"); got != "active" {
		t.Errorf("the scope is %s", got)
	}
	if pids, err := d.Pids(p1); err != nil || begun && !slices.Equal(pids, []int{early.Process.Pid}) {
		t.Errorf("processes %v, %v", pids, err)
	}
	if got := d.kernelWord(t, cg, "memory", "memory.limit_in_bytes", "memory.max"); got != strconv.Itoa(64<<20) {
		t.Errorf("the limit is %s", got)
	}
	d.Settle(p1, early.Process.Pid)
	_ = early.Process.Kill()
	_ = early.Wait()
	if err := d.Delete(t.Context(), p1); err != nil {
		t.Error(err)
	}
	until(t, "systemd to forget the scope", gone(t, path.Base(p1)))
	// Whose finish is never called goes as well; one that is there is made the whole way.
	if _, _, err := s.Begin(t.Context(), p1, nil); err != nil {
		t.Fatal(err)
	}
	cg, finish, err = s.Begin(t.Context(), p1, nil)
	if err == nil && finish != nil {
		err = finish(t.Context())
	}
	if err != nil || show(t, path.Base(p1), "ActiveState") != "active" {
		t.Error(err)
	}
	if err := d.Delete(t.Context(), p1); err != nil {
		t.Error(err)
	}
	for _, dir := range all(cg) {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", dir, err)
		}
	}
}
