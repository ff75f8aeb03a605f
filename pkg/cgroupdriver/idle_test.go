package cgroupdriver

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// pauseLimits are what pause is given.
func pauseLimits() *specs.LinuxResources {
	return &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: p(uint64(2))}, Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}}
}

// podCgroup makes a pod's cgroup in all v1 hierarchies, as the kubelet does, and returns its path.
func (f *fixture) podCgroup(t *testing.T) string {
	t.Helper()
	pod := f.below("pod")
	for name, mount := range f.v1 {
		dir := mount + pod
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Rmdir(dir); _ = unix.Rmdir(filepath.Dir(dir)) })
		if name == f.hierarchy["cpuset"] {
			if err := inheritCpuset(dir, mount, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	return pod
}

func beginIdle(t *testing.T, d *fixture, parent string, res *specs.LinuxResources) (string, *engine.Cgroup) {
	t.Helper()
	path, err := d.Path(parent, "pause")
	if err != nil {
		t.Fatal(err)
	}
	cg, finish, err := d.BeginIdle(t.Context(), path, res)
	if err == nil && finish != nil {
		err = finish(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Delete(t.Context(), path); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
	})
	return path, cg
}

func TestBeginIdleShares(t *testing.T) {
	d := v1(t, "cpu", "memory", "devices", "cpuset", "freezer")
	if d.Name() != "cgroupfs" {
		t.Skip("a scope is one in all hierarchies")
	}
	pod := d.podCgroup(t)
	shares := value(t, d.v1[d.hierarchy["cpu"]]+pod, "cpu.shares")
	path, cg := beginIdle(t, d, pod, pauseLimits())
	for name, dir := range cg.V1 {
		shared := slices.Contains(cg.Shared, name)
		own := name == d.hierarchy["devices"] || d.v1[name] == d.primary() || d.unified == "" && name == d.hierarchy["freezer"]
		if shared == own || shared && dir != d.v1[name]+pod || !shared && dir != d.v1[name]+path {
			t.Errorf("%s: %s, shared %v", name, dir, shared)
		}
		if _, err := os.Stat(d.v1[name] + path); (err == nil) != own {
			t.Errorf("%s: a cgroup of its own: %v", name, err)
		}
	}
	if d.unified != "" && cg.Unified != d.unified+path {
		t.Errorf("unified: %s", cg.Unified)
	}
	if own := cg.Own(); len(own.V1)+len(cg.Shared) != len(cg.V1) || own.V1[d.hierarchy["memory"]] != "" || own.Unified != cg.Unified {
		t.Errorf("its own: %+v", own)
	}
	if now := value(t, d.v1[d.hierarchy["cpu"]]+pod, "cpu.shares"); now != shares {
		t.Errorf("cpu.shares of the pod was %s and is %s", shares, now)
	}
	if l := value(t, cg.V1[d.hierarchy["devices"]], "devices.list"); l != "" {
		t.Errorf("it may use devices: %s", l)
	}
	if list, err := d.List(); err != nil || !slices.Contains(list, path) {
		t.Errorf("listed: %v, %v", list, err)
	}
}

// Nothing that is done to the cgroup reaches those beside it.
func TestBeginIdleIsAloneInIts(t *testing.T) {
	d := v1(t, "memory", "devices", "freezer")
	if d.Name() != "cgroupfs" {
		t.Skip("a scope is one in all hierarchies")
	}
	pod := d.podCgroup(t)
	path, cg := beginIdle(t, d, pod, pauseLimits())
	beside := &engine.Cgroup{V1: map[string]string{}}
	for name, mount := range d.v1 {
		beside.V1[name] = mount + pod
	}
	other := spawn(t, beside, "exec sleep 1000")
	pause := spawn(t, cg, "exec sleep 1000")
	until(t, "the processes to join", func() bool {
		pids, _ := procs(d.v1[d.hierarchy["memory"]] + pod)
		return joined(d, path, pause) && slices.Contains(pids, other.Process.Pid) && slices.Contains(pids, pause.Process.Pid)
	})
	if pids, err := d.Pids(path); err != nil || len(pids) != 1 || pids[0] != pause.Process.Pid {
		t.Errorf("pids %v, %v", pids, err)
	}
	if _, err := d.Stats(path); !errdefs.IsNotFound(err) && d.hierarchy["memory"] != d.hierarchy["devices"] {
		t.Errorf("stats of the pod's: %v", err)
	}
	if n, err := d.Tasks(path); err == nil && n > 1 {
		t.Errorf("%d tasks", n)
	}
	if err := d.Update(t.Context(), path, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(1 << 20))}}); err == nil {
		t.Error("a limit of memory went somewhere")
	}
	_ = d.Freeze(t.Context(), path)
	if state := value(t, d.v1[d.hierarchy["freezer"]]+pod, "freezer.state"); state != "THAWED" {
		t.Errorf("the pod is %s", state)
	}
	_ = d.Thaw(t.Context(), path)
	if err := d.Kill(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	_ = pause.Wait()
	for range 2 {
		if err := d.Delete(t.Context(), path); err != nil {
			t.Fatal(err)
		}
	}
	for name, mount := range d.v1 {
		if _, err := os.Stat(mount + path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
		pids, err := procs(mount + pod)
		if err != nil || !slices.Contains(pids, other.Process.Pid) {
			t.Errorf("%s: the other one is not in the pod's any more: %v, %v", name, pids, err)
		}
	}
	if err := other.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("the other process: %v", err)
	}
	_ = other.Process.Kill()
	_ = other.Wait()
}

// What speaks against sharing.
func TestBeginIdleOwn(t *testing.T) {
	d := v1(t, "cpu", "memory", "pids", "cpuset")
	if d.Name() != "cgroupfs" {
		t.Skip("a scope is one in all hierarchies")
	}
	at := func(controller, path string) string { return d.v1[d.hierarchy[controller]] + path }
	for name, tt := range map[string]struct {
		res    *specs.LinuxResources
		before func(t *testing.T, pod string)
		own    []string // controllers
	}{
		"a limit of memory": {&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(64 << 20))}}, nil, []string{"memory"}},
		"a limit of tasks":  {&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p(int64(64))}}, nil, []string{"pids"}},
		"a quota": {&specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: p(uint64(7)), Quota: p(int64(50000)), Period: p(uint64(100000))}}, nil,
			[]string{"cpu"}},
		"CPUs": {&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0"}}, nil, []string{"cpuset"}},
		"a parent that is not there": {nil, func(t *testing.T, pod string) {
			if err := unix.Rmdir(at("memory", pod)); err != nil {
				t.Fatal(err)
			}
		}, []string{"memory"}},
		"a parent that is the driver's": {nil, func(_ *testing.T, pod string) { d.mark(at("memory", pod), parentMark) }, []string{"memory"}},
		"a parent without CPUs": {nil, func(t *testing.T, pod string) {
			dir := at("cpuset", pod)
			if err := errors.Join(unix.Rmdir(dir), unix.Mkdir(dir, 0o755)); err != nil {
				t.Fatal(err)
			}
		}, []string{"cpuset"}},
	} {
		t.Run(name, func(t *testing.T) {
			pod := d.podCgroup(t)
			if tt.before != nil {
				tt.before(t, pod)
			}
			path, cg := beginIdle(t, d, pod, tt.res)
			for _, c := range []string{"cpu", "memory", "pids", "cpuset"} {
				own := slices.Contains(tt.own, c) || d.v1[d.hierarchy[c]] == d.primary()
				if dir := cg.V1[d.hierarchy[c]]; strings.HasSuffix(dir, path) != own {
					t.Errorf("%s: in %s", c, dir)
				}
			}
			if res := tt.res; res != nil && res.CPU != nil && res.CPU.Shares != nil {
				if s := value(t, cg.V1[d.hierarchy["cpu"]], "cpu.shares"); s != "7" {
					t.Errorf("cpu.shares %s", s)
				}
			}
		})
	}
}

// Where there is nothing to share it is as Begin's: on v2, as a scope, and below the root.
func TestBeginIdleAsBegin(t *testing.T) {
	d := driver(t)
	path, err := d.Path("", "pause")
	if err != nil {
		t.Fatal(err)
	}
	cg, finish, err := d.BeginIdle(t.Context(), path, pauseLimits())
	if err == nil && finish != nil {
		err = finish(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	d.Settle(path, 0)
	if len(cg.Shared) > 0 {
		t.Errorf("shared: %v", cg.Shared)
	}
	if d.Name() == "cgroupfs" {
		for _, dir := range all(cg) {
			if _, err := os.Stat(dir); err != nil {
				t.Error(err)
			}
		}
	}
	if err := d.Delete(t.Context(), path); err != nil {
		t.Error(err)
	}
	if d.v2 {
		return
	}
	top := d.dirs("/x")
	if left := d.share(top, "/x", nil); left != nil || len(top.Shared) > 0 {
		t.Errorf("below the root: %v", top.Shared)
	}
}

// What an older cri-monitor is told to be pause's it kills in, where it has neither the unified hierarchy nor a freezer.
func TestBeginIdleWithoutFreezer(t *testing.T) {
	d := v1(t, "memory", "freezer")
	if d.Name() != "cgroupfs" {
		t.Skip("a scope is one in all hierarchies")
	}
	pod := d.podCgroup(t)
	for name, tt := range map[string]struct{ unified, freezer, shares bool }{
		"both": {true, true, true}, "the unified one": {true, false, true}, "a freezer": {false, true, true}, "none": {},
	} {
		all := *d.cgroupfs.layout
		without := &cgroupfs{layout: &all, owner: d.owner, hierarchy: maps.Clone(d.hierarchy)}
		if all.unified = "/unified"; !tt.unified {
			all.unified = ""
		}
		if !tt.freezer {
			delete(without.hierarchy, "freezer")
		}
		cg := without.dirs(pod + "/pause")
		without.share(cg, pod+"/pause", pauseLimits())
		if got := slices.Contains(cg.Shared, d.hierarchy["memory"]); got != tt.shares {
			t.Errorf("%s: shared are %v", name, cg.Shared)
		}
	}
}
