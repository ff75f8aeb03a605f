package cgroupdriver

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// A container's cpuset must not ask for scheduling domains of its own where the one above covers it: each that does makes the
// kernel walk all cpusets of the node when it comes and when it goes. What it may run on must be what it was told.
func TestCpusetLeavesBalancingToItsParent(t *testing.T) {
	const balance = "cpuset.sched_load_balance"
	for name, c := range map[string]struct{ above, want string }{
		"balanced above":     {"1", "0"},
		"not balanced above": {"0", "1"},
	} {
		t.Run(name, func(t *testing.T) {
			d := v1(t, "cpuset")
			// A first container makes what is above the second, which keeps the kernel's value.
			create(t, d, nil)
			path, err := d.Path(parent(), "second")
			if err != nil {
				t.Fatal(err)
			}
			root := d.v1[d.hierarchy["cpuset"]]
			above := filepath.Dir(filepath.Join(root, path))
			if got := value(t, above, balance); got != "1" {
				t.Errorf("%s of a directory above is %q", balance, got)
			}
			if err := write(above, balance, c.above); err != nil {
				t.Fatal(err)
			}
			cg, err := d.Create(t.Context(), path, &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0"}})
			if err != nil {
				t.Fatal(err)
			}
			dir := cg.V1[d.hierarchy["cpuset"]]
			for file, want := range map[string]string{balance: c.want, "cpuset.cpus": "0", "cpuset.mems": value(t, above, "cpuset.mems")} {
				if got := value(t, dir, file); got != want {
					t.Errorf("%s is %q, want %q", file, got, want)
				}
			}
			child := spawn(t, cg, "exec sleep 1000")
			until(t, "the process to join", func() bool { return joined(d, path, child) })
			d.Settle(path, child.Process.Pid)
			if got := allowed(t, child.Process.Pid); got != "0" {
				t.Errorf("may run on CPUs %s, want 0", got)
			}
			all := value(t, above, "cpuset.cpus")
			if err := d.Update(t.Context(), path, &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: all}}); err != nil {
				t.Fatal(err)
			}
			if got := allowed(t, child.Process.Pid); got != all {
				t.Errorf("may run on CPUs %s after an update, want %s", got, all)
			}
			if err := d.Delete(t.Context(), path); err != nil {
				t.Error(err)
			}
			_ = child.Wait()
		})
	}
}

// allowed is the list of CPUs that a process may run on (proc_pid_status(5)).
func allowed(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if list, ok := strings.CutPrefix(line, "Cpus_allowed_list:"); ok {
			return strings.TrimSpace(list)
		}
	}
	t.Fatalf("no list of CPUs in %s", b)
	return ""
}
