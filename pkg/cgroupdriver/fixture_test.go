package cgroupdriver

import (
	"context"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// The suite runs over one driver, which the environment names: cgroupfs, or systemd on a node that has it. The node
// decides about v1 or v2.
const driverVariable = "CRI_SERVER_TEST_CGROUP_DRIVER"

// fixture is the driver under test, whichever it is, with cgroupfs's view of the files.
type fixture struct {
	*cgroupfs
	under Driver
}

func (f *fixture) Name() string { return f.under.Name() }
func (f *fixture) Path(parent, id string) (string, error) {
	return f.under.Path(parent, id)
}
func (f *fixture) Create(ctx context.Context, p string, r *specs.LinuxResources) (*engine.Cgroup, error) {
	return f.under.Create(ctx, p, r)
}
func (f *fixture) BeginIdle(ctx context.Context, p string, r *specs.LinuxResources) (*engine.Cgroup, func(context.Context) error, error) {
	return f.under.BeginIdle(ctx, p, r)
}
func (f *fixture) Settle(p string, pid int)     { f.under.Settle(p, pid) }
func (f *fixture) OCI(p string) OCI             { return f.under.OCI(p) }
func (f *fixture) Pids(p string) ([]int, error) { return f.under.Pids(p) }
func (f *fixture) Update(ctx context.Context, p string, r *specs.LinuxResources) error {
	return f.under.Update(ctx, p, r)
}
func (f *fixture) Stats(p string) (*Stats, error)             { return f.under.Stats(p) }
func (f *fixture) Usage(p string) (*Stats, error)             { return f.under.Usage(p) }
func (f *fixture) Tasks(p string) (uint64, error)             { return f.under.Tasks(p) }
func (f *fixture) Kill(ctx context.Context, p string) error   { return f.under.Kill(ctx, p) }
func (f *fixture) Delete(ctx context.Context, p string) error { return f.under.Delete(ctx, p) }

// parent is the cgroup below which a test's are.
func parent() string {
	if os.Getenv(driverVariable) == "systemd" {
		return strings.ReplaceAll(strings.TrimPrefix(testns.CgroupParent(), "/"), "-", "") + ".slice"
	}
	return testns.CgroupParent()
}

// below names a cgroup below the parent in the driver's form.
func (f *fixture) below(name string) string {
	if f.Name() == "systemd" {
		return strings.TrimSuffix(parent(), ".slice") + "-" + name + ".slice"
	}
	return parent() + "/" + name
}

func driver(t *testing.T) *fixture {
	t.Helper()
	testns.Root(t)
	return fixtureOf(t, "test-"+t.Name())
}

func fixtureOf(t *testing.T, owner string) *fixture {
	t.Helper()
	name := os.Getenv(driverVariable)
	if name == "" {
		name = "cgroupfs"
	}
	d, err := New(Config{Driver: name, DefaultParent: parent(), Owner: owner})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{under: d}
	switch d := d.(type) {
	case *cgroupfs:
		f.cgroupfs = d
		t.Cleanup(func() {
			if err := d.Delete(context.Background(), testns.CgroupParent()); err != nil {
				t.Error(err)
			}
		})
	case *systemd:
		f.cgroupfs = d.cgroupfs
		t.Cleanup(func() { f.stopSlice(t, d) })
	}
	return f
}

// stopSlice ends what is left of a test, and fails it for a scope that is.
func (f *fixture) stopSlice(t *testing.T, d *systemd) {
	ctx := context.Background()
	paths, err := d.List()
	if err != nil {
		t.Error(err)
	}
	for _, p := range paths {
		if err := d.Delete(ctx, p); err != nil {
			t.Error(err)
		}
	}
	if !strings.HasPrefix(d.owner, "test-") {
		return // the other fixture of the test does the rest
	}
	pattern := strings.TrimSuffix(parent(), ".slice")
	until(t, "systemd to forget all scopes", func() bool {
		out, err := exec.Command("systemctl", "list-units", "--all", "--plain", "--no-legend", "cri-c*.scope").CombinedOutput()
		return err == nil && len(out) == 0
	})
	for _, name := range []string{pattern + "-a.slice", parent()} {
		if err := d.stop(ctx, name); err != nil {
			t.Error(err)
		}
		slice, _ := slicePath(name)
		if err := d.cgroupfs.Delete(ctx, slice); err != nil {
			t.Error(err)
		}
	}
	d.bus.close()
}

// needs skips where a controller is missing, on v1 or v2.
func needs(t *testing.T, controllers ...string) *fixture {
	t.Helper()
	d := driver(t)
	have := d.hierarchy
	if d.v2 {
		have = map[string]string{"cpuacct": "cpu", "devices": "bpf", "freezer": "core"}
		for _, c := range strings.Fields(value(t, d.unified, "cgroup.controllers")) {
			have[c] = c
		}
		if have["io"] != "" {
			have["blkio"] = "io"
		}
	}
	for _, c := range controllers {
		if have[c] == "" {
			t.Skipf("no %s controller here", c)
		}
	}
	return d
}

// v1 skips where the controllers are not on v1.
func v1(t *testing.T, controllers ...string) *fixture {
	t.Helper()
	d := driver(t)
	for _, c := range controllers {
		if d.hierarchy[c] == "" {
			t.Skipf("no v1 %s controller here", c)
		}
	}
	return d
}

// joined tells whether a command has reached the hierarchy that it is killed by, which it joins last.
func joined(d *fixture, p string, c *exec.Cmd) bool {
	pids, _ := procs(path.Join(d.primary(), p))
	return slices.Contains(pids, c.Process.Pid)
}

// kernelWord reads a limit where the kernel of this version keeps it: v1's file or v2's.
func (f *fixture) kernelWord(t *testing.T, cg *engine.Cgroup, controller, v1File, v2File string) string {
	t.Helper()
	if f.v2 {
		return value(t, cg.Unified, v2File)
	}
	return value(t, cg.V1[f.hierarchy[controller]], v1File)
}
