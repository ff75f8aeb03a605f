package cgroupdriver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

// onSystemd skips but where the suite runs over the systemd driver.
func onSystemd(t *testing.T) (*fixture, *systemd) {
	t.Helper()
	testns.Root(t)
	if os.Getenv(driverVariable) != "systemd" {
		t.Skip("needs systemd as pid 1: hack/node")
	}
	d := driver(t)
	return d, d.under.(*systemd)
}

func show(t *testing.T, unit string, properties ...string) string {
	t.Helper()
	out, err := exec.Command("systemctl", "show", "--value", "-p", strings.Join(properties, ","), unit).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(out)), " ")
}

func systemctl(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("systemctl", args...).CombinedOutput(); err != nil {
		t.Fatalf("systemctl %v: %v, %s", args, err, out)
	}
}

func gone(t *testing.T, scope string) func() bool {
	return func() bool {
		return show(t, scope, "LoadState") == "not-found" || show(t, scope, "ActiveState") == "inactive"
	}
}

// TestScopeLastsUntilSettled: an empty scope goes, so it must not be empty before the container has joined.
func TestScopeLastsUntilSettled(t *testing.T) {
	d, _ := onSystemd(t)
	path1, _ := create(t, d, nil)
	_, scope, _ := scopeOf(path1)
	if got := show(t, scope, "ActiveState"); got != "active" {
		t.Errorf("the scope is %s", got)
	}
	if got := show(t, scope, "Delegate", "Slice"); got != parent()+" yes" && got != "yes "+parent() {
		t.Errorf("delegate, slice: %s", got)
	}
	if pids, err := d.Pids(path1); err != nil || len(pids) != 0 {
		t.Errorf("the driver shows a placeholder: %v, %v", pids, err)
	}
	pids, err := d.processes(path1)
	if err != nil || len(pids) != 1 {
		t.Fatalf("in the new scope: %v, %v", pids, err)
	}
	comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pids[0]))
	if string(comm) != "cri-placeholder\n" {
		t.Errorf("in the new scope is %q", comm)
	}
	d.Settle(path1, 0)
	d.Settle(path1, 0)
	if pids, err := d.processes(path1); err != nil || len(pids) != 0 {
		t.Errorf("after Settle: %v, %v", pids, err)
	}
	if d.unified != "" { // v1 alone has no event for systemd in a container
		until(t, "systemd to remove the scope", gone(t, scope))
	}
	if err := d.Delete(t.Context(), path1); err != nil {
		t.Error(err)
	}
}

// TestScopeOutlivesItsContainer: what the kernel has counted can be read when the last process is gone.
func TestScopeOutlivesItsContainer(t *testing.T) {
	d, _ := onSystemd(t)
	p1, cg := create(t, d, nil)
	c := spawn(t, cg, "exec sleep 100")
	until(t, "the process to join", func() bool { return joined(d, p1, c) })
	d.Settle(p1, c.Process.Pid)
	if s, err := d.Stats(p1); err != nil || s.Pids == nil || s.Pids.Current != 1 {
		t.Errorf("processes %+v, %v", s, err)
	}
	if pids, err := d.Pids(p1); err != nil || !slices.Equal(pids, []int{c.Process.Pid}) {
		t.Errorf("pids %v, %v", pids, err)
	}
	_ = c.Process.Kill()
	_ = c.Wait()
	systemctl(t, "daemon-reload")                                        // whatever systemd had to do, it has done now
	d.kernelWord(t, cg, "memory", "memory.oom_control", "memory.events") // is there
	if err := d.Delete(t.Context(), p1); err != nil {
		t.Error(err)
	}
	_, scope, _ := scopeOf(p1)
	until(t, "systemd to forget the scope", gone(t, scope))
}

// TestCrashLeavesNoPlaceholder kills a server between Create and Settle.
func TestCrashLeavesNoPlaceholder(t *testing.T) {
	d, _ := onSystemd(t)
	p1, err := d.Path("", "c1")
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("CRASH") != "" {
		if _, err := d.Create(t.Context(), p1, nil); err != nil {
			t.Fatal(err)
		}
		fmt.Println("made")
		select {}
	}
	c := exec.Command("/proc/self/exe", "-test.run=^TestCrashLeavesNoPlaceholder$")
	c.Env = append(os.Environ(), "CRASH=1")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4)
	_, _ = out.Read(buf)
	pids, err := d.processes(p1)
	if string(buf) != "made" || err != nil || len(pids) != 1 {
		t.Errorf("%q, %v, %v", buf, pids, err)
	}
	_ = c.Process.Kill()
	_ = c.Wait()
	until(t, "the placeholder to end", func() bool { pids, err := d.processes(p1); return err == nil && len(pids) == 0 })
	// The next server makes it anew, or removes it.
	if _, err := d.Create(t.Context(), p1, nil); err != nil {
		t.Error(err)
	}
	if err := d.Delete(t.Context(), p1); err != nil {
		t.Error(err)
	}
}

// TestScopeOfAnOCIRuntime: its last process gone, it stays as one of ours does.
func TestScopeOfAnOCIRuntime(t *testing.T) {
	d, s := onSystemd(t)
	p1, cg := create(t, d, nil)
	c := spawn(t, cg, "exec sleep 100")
	until(t, "the process to join", func() bool { return joined(d, p1, c) })
	s.places.end(p1) // which is how it looks when a runtime has made the scope
	d.Settle(p1, c.Process.Pid)
	_ = c.Process.Kill()
	_ = c.Wait()
	systemctl(t, "daemon-reload")
	d.kernelWord(t, cg, "memory", "memory.oom_control", "memory.events") // is there
	if err := d.Delete(t.Context(), p1); err != nil {
		t.Error(err)
	}
}

func TestForeignScope(t *testing.T) {
	d, s := onSystemd(t)
	p1, cg := create(t, d, nil)
	c := spawn(t, cg, "sleep 100")
	until(t, "the process to join", func() bool { return joined(d, p1, c) })
	d.Settle(p1, 0)
	if _, err := d.Create(t.Context(), p1, nil); err != nil {
		t.Errorf("our own, again: %v", err)
	}
	d.Settle(p1, 0)
	other := fixtureOf(t, "another")
	if _, err := other.Create(t.Context(), p1, nil); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("a foreign scope: %v", err)
	}
	if pids, err := d.Pids(p1); err != nil || len(pids) == 0 {
		t.Errorf("the container's process: %v, %v", pids, err)
	}
	if n := len(s.places.of); n != 0 {
		t.Errorf("%d placeholders", n)
	}
	if err := d.Delete(t.Context(), p1); err != nil {
		t.Error(err)
	}
	_ = c.Wait()
}

// TestLimitsOutliveReload: systemd writes its own values on a daemon-reload, which must be ours.
func TestLimitsOutliveReload(t *testing.T) {
	d, _ := onSystemd(t)
	p1, cg := create(t, d, &specs.LinuxResources{
		CPU:     &specs.LinuxCPU{Shares: p(uint64(512)), Quota: p(int64(20000)), Period: p(uint64(50000))},
		Memory:  &specs.LinuxMemory{Limit: p(int64(64 << 20))},
		Pids:    &specs.LinuxPids{Limit: p(int64(77))},
		Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}, {Allow: true, Type: "c", Major: p(int64(1)), Minor: p(int64(3)), Access: "rwm"}},
	})
	c := spawn(t, cg, "sleep 100")
	until(t, "the process to join", func() bool { return joined(d, p1, c) })
	d.Settle(p1, 0)
	read := func() string {
		s := strings.Join([]string{d.kernelWord(t, cg, "cpu", "cpu.shares", "cpu.weight"), d.kernelWord(t, cg, "cpu", "cpu.cfs_quota_us", "cpu.max"),
			d.kernelWord(t, cg, "memory", "memory.limit_in_bytes", "memory.max"), d.kernelWord(t, cg, "pids", "pids.max", "pids.max")}, " ")
		if !d.v2 {
			s += " " + value(t, cg.V1["devices"], "devices.list")
		}
		return s
	}
	before := read()
	systemctl(t, "daemon-reload")
	if after := read(); after != before {
		t.Errorf("before %q, after %q", before, after)
	}
	if err := d.Update(t.Context(), p1, &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: p(uint64(2048)), Quota: p(int64(30000))},
		Memory: &specs.LinuxMemory{Limit: p(int64(96 << 20))}, Pids: &specs.LinuxPids{Limit: p(int64(88))}}); err != nil {
		t.Fatal(err)
	}
	updated := read()
	tasks := 88
	if d.v2 {
		tasks++ // for the placeholder
	}
	for _, want := range []string{"30000", strconv.Itoa(96 << 20), strconv.Itoa(tasks)} {
		if !strings.Contains(updated, want) {
			t.Errorf("after the update %q", updated)
		}
	}
	systemctl(t, "daemon-reload")
	if after := read(); after != updated {
		t.Errorf("before the second reload %q, after %q", updated, after)
	}
	if err := d.Delete(t.Context(), p1); err != nil {
		t.Error(err)
	}
	_ = c.Wait()
}

// TestSystemdExecutesItselfAnew while scopes come and go: nothing fails.
func TestSystemdExecutesItselfAnew(t *testing.T) {
	d, _ := onSystemd(t)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for i := range 4 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
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
	for range 3 {
		systemctl(t, "daemon-reexec")
	}
	close(stop)
	wg.Wait()
}

// TestDeleteWaitsForSystemd: systemd comes back later than a process is given to end, and nothing fails.
func TestDeleteWaitsForSystemd(t *testing.T) {
	d, s := onSystemd(t)
	p1, _ := create(t, d, nil)
	defer func(d time.Duration, sockets [2]string) { killTimeout, s.bus.sockets = d, sockets }(killTimeout, s.bus.sockets)
	killTimeout = 100 * time.Millisecond
	away, back := s.bus.sockets[0], path.Join(t.TempDir(), "systemd")
	s.bus.close()
	s.bus.sockets = [2]string{back, back + "-none"}
	symlinked := make(chan error, 1)
	time.AfterFunc(5*killTimeout, func() { symlinked <- os.Symlink(away, back) })
	if s.unified != "" { // stopped while its placeholder is there: else systemd mostly needs no word
		if err := s.stop(t.Context(), path.Base(p1)); err != nil {
			t.Error(err)
		}
	}
	if err := d.Delete(t.Context(), p1); err != nil {
		t.Error(err)
	}
	if err := <-symlinked; err != nil {
		t.Error(err)
	}
	_, scope, _ := scopeOf(p1)
	until(t, "systemd to forget the scope", gone(t, scope))
}

// TestOverTheSystemBus is what happens without systemd's private socket, and when the bus is restarted.
func TestOverTheSystemBus(t *testing.T) {
	d, s := onSystemd(t)
	s.bus.close()
	s.bus.sockets[0] = "/nonexistent"
	for _, id := range []string{"c1", "c2"} {
		p1, _ := d.Path("", id)
		if _, err := d.Create(t.Context(), p1, nil); err != nil {
			t.Fatal(err)
		}
		systemctl(t, "restart", "dbus.service")
		if err := d.Delete(t.Context(), p1); err != nil {
			t.Error(err)
		}
	}
}

func BenchmarkScope(b *testing.B) {
	if os.Getenv(driverVariable) != "systemd" {
		b.Skip("needs systemd as pid 1: hack/node")
	}
	d, err := New(Config{Driver: "systemd", DefaultParent: parent()})
	if err != nil {
		b.Fatal(err)
	}
	s := d.(*systemd)
	slice, _ := slicePath(parent())
	defer func() { _ = s.stop(context.Background(), parent()); _ = s.cgroupfs.Delete(context.Background(), slice) }()
	ctx := context.Background()
	b.Run("placeholder", func(b *testing.B) {
		for b.Loop() {
			pl, err := startPlaceholder()
			if err != nil {
				b.Fatal(err)
			}
			pl.end()
		}
	})
	var make, del time.Duration
	b.Run("create and delete", func(b *testing.B) {
		make, del = 0, 0
		init := cpuOf(1)
		for n := 0; b.Loop(); n++ {
			p1 := path.Join(slice, fmt.Sprintf("cri-c%d.scope", n))
			t0 := time.Now()
			if _, err := d.Create(ctx, p1, nil); err != nil {
				b.Fatal(err)
			}
			d.Settle(p1, 0)
			t1 := time.Now()
			if err := d.Delete(ctx, p1); err != nil {
				b.Fatal(err)
			}
			make, del = make+t1.Sub(t0), del+time.Since(t1)
		}
		b.ReportMetric(float64((cpuOf(1)-init).Microseconds())/float64(b.N), "µs/systemd's-CPU")
		b.ReportMetric(float64(make.Microseconds())/float64(b.N), "µs/create")
		b.ReportMetric(float64(del.Microseconds())/float64(b.N), "µs/delete")
	})
}

// cpuOf is what a process has used; see clock_getcpuclockid(3).
func cpuOf(pid int) time.Duration {
	var at unix.Timespec
	if unix.ClockGettime(int32(^pid<<3|2), &at) != nil {
		return 0
	}
	return time.Duration(at.Nano())
}
