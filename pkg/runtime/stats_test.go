package runtime

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/cgroupdriver"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
)

// fakeLayers measures when it is allowed to.
type fakeLayers struct {
	layers
	tasks    sync.WaitGroup
	mu       sync.Mutex
	measured map[string]int
	now, top atomic.Int32  // walks at the same time
	gate     chan struct{} // nil: no waiting
	err      error
}

func newFakeLayers(gate chan struct{}) *fakeLayers {
	f := &fakeLayers{measured: map[string]int{}, gate: gate}
	f.layers = layers{tasks: &f.tasks, measure: func(id string) (imagestore.Usage, error) {
		n := f.now.Add(1)
		defer f.now.Add(-1)
		for top := f.top.Load(); n > top && !f.top.CompareAndSwap(top, n); top = f.top.Load() {
		}
		if f.gate != nil {
			<-f.gate
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.measured[id]++
		return imagestore.Usage{Bytes: uint64(f.measured[id]), Time: time.Now()}, f.err
	}}
	return f
}

func (f *fakeLayers) bytes(id string) int {
	u, ok := f.get(id)
	if !ok {
		return -1
	}
	return int(u.Bytes)
}

func TestLayersAreMeasuredNowAndThen(t *testing.T) {
	f := newFakeLayers(nil)
	if got := f.bytes("a"); got != -1 {
		t.Errorf("before: %d", got)
	}
	now := time.Now()
	if n := len(f.request(now, "a", "b")); n != 2 {
		t.Errorf("%d unknown", n)
	}
	f.tasks.Wait()
	if f.bytes("a") != 1 || f.bytes("b") != 1 {
		t.Errorf("a %d, b %d", f.bytes("a"), f.bytes("b"))
	}
	for _, step := range []struct {
		after time.Duration
		want  int
	}{{0, 1}, {layerMaxAge / 2, 1}, {2 * layerMaxAge, 2}} {
		if unknown := f.request(now.Add(step.after), "a"); unknown != nil {
			t.Error("known, but to be waited for")
		}
		f.tasks.Wait()
		if got := f.bytes("a"); got != step.want {
			t.Errorf("after %v: measured %d times, want %d", step.after, got, step.want)
		}
	}
}

func TestSlowLayersAreMeasuredLessOften(t *testing.T) {
	f := newFakeLayers(nil)
	f.request(time.Now(), "a", "b")
	f.tasks.Wait()
	if a, b := f.byID["a"].took, f.byID["b"].took; f.total != a+b {
		t.Errorf("%v and %v are not %v", a, b, f.total)
	}
	f.err = errors.New("gone")
	f.request(time.Now().Add(time.Hour), "a")
	f.tasks.Wait()
	f.forget("b")
	if f.total != 0 {
		t.Errorf("%v for nothing", f.total)
	}
	for took, want := range map[time.Duration]time.Duration{0: layerMaxAge, 100 * time.Millisecond: layerMaxAge, time.Minute: layerShare * time.Minute} {
		if got := layerPause(took); got != want {
			t.Errorf("after one that took %v: %v", took, got)
		}
	}
}

func TestFewLayersAtATime(t *testing.T) {
	gate := make(chan struct{})
	f := newFakeLayers(gate)
	var ids []string
	for i := range 50 {
		ids = append(ids, fmt.Sprint(i))
	}
	f.request(time.Now(), ids...)
	f.request(time.Now(), ids...) // nothing is queued twice
	close(gate)
	f.tasks.Wait()
	if top := f.top.Load(); top > layerWalks {
		t.Errorf("%d at the same time", top)
	}
	for _, id := range ids {
		if f.measured[id] != 1 {
			t.Errorf("%s was measured %d times", id, f.measured[id])
		}
	}
}

func TestMeasureLayersDoesNotWaitLong(t *testing.T) {
	gate := make(chan struct{})
	f := newFakeLayers(gate)
	c := &Containers{}
	c.layers.measure, c.layers.tasks = f.measure, &f.tasks
	begin := time.Now()
	c.MeasureLayers(context.Background(), &Container{ID: "a"}, &Container{ID: "b"}, &Container{ID: "x", Broken: "yes"})
	if took := time.Since(begin); took < layerPatience || took > time.Minute {
		t.Errorf("waited for %v", took)
	}
	if _, ok := c.LayerUsage("a"); ok {
		t.Error("known too early")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	c.MeasureLayers(ctx, &Container{ID: "a"})
	close(gate)
	f.tasks.Wait()
	c.MeasureLayers(context.Background(), &Container{ID: "a"})
	if u, ok := c.LayerUsage("a"); !ok || u.Bytes != 1 {
		t.Errorf("got %v, %v", u, ok)
	}
	if f.measured["x"] != 0 {
		t.Error("a broken container was measured")
	}
}

func TestLayersThatGo(t *testing.T) {
	f := newFakeLayers(nil)
	f.err = errors.New("gone")
	wait := f.request(time.Now(), "a")
	f.tasks.Wait()
	<-wait[0] // nobody waits for what will never be known
	if f.bytes("a") != -1 || len(f.byID) != 0 {
		t.Error("a usage of nothing")
	}
	f.err = nil
	f.request(time.Now(), "a")
	f.tasks.Wait()
	f.forget("a")
	f.forget("never there")
	if f.bytes("a") != -1 {
		t.Error("not forgotten")
	}

	gate := make(chan struct{})
	f = newFakeLayers(gate)
	f.request(time.Now(), "a", "b", "c")
	f.forget("a") // being measured or about to be
	f.forget("c") // waiting
	close(gate)
	f.tasks.Wait()
	if f.bytes("a") != -1 || f.bytes("b") != 1 || f.bytes("c") != -1 || len(f.byID) != 1 {
		t.Errorf("left: %v", f.byID)
	}
}

func TestFirstRateIsSinceTheStart(t *testing.T) {
	at := time.Unix(1000, 0)
	for _, tt := range []struct {
		name  string
		since time.Time
		want  uint64
	}{
		{"two seconds", at.Add(-2 * time.Second), 5e8}, {"just now", at, 0}, {"unknown", time.Time{}, 0}, {"in the future", at.Add(time.Hour), 0},
	} {
		var r rates
		if got := r.nanoCores("x", tt.since, &cgroupdriver.Stats{Time: at, CPU: &cgroupdriver.CPUStats{Usage: 1e9}}); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
	var r rates
	if got := r.nanoCores("x", at, &cgroupdriver.Stats{Time: at}); got != 0 {
		t.Errorf("without a CPU reading: %d", got)
	}
}

func TestStatsTranslation(t *testing.T) {
	free := uint64(9)
	psi := &cgroupdriver.PSI{Some: cgroupdriver.PSILine{Avg10: 1, Avg60: 2, Avg300: 3, Total: 4}, Full: cgroupdriver.PSILine{Total: 5}}
	st := &cgroupdriver.Stats{
		Time: time.Unix(0, 77), CPU: &cgroupdriver.CPUStats{Usage: 6, PSI: psi},
		Memory: &cgroupdriver.MemoryStats{Usage: 7, WorkingSet: 6, Available: &free, PSI: psi},
		Swap:   &cgroupdriver.SwapStats{Usage: 8, Available: &free}, IO: &cgroupdriver.IOStats{PSI: psi},
	}
	if c := CPU(st); c.Timestamp != 77 || c.UsageCoreNanoSeconds.Value != 6 || c.Psi.Some.Avg300 != 3 || c.Psi.Full.Total != 5 {
		t.Errorf("cpu: %v", c)
	}
	if m := Memory(st); m.Timestamp != 77 || m.AvailableBytes.GetValue() != 9 || m.WorkingSetBytes.Value != 6 || m.Psi.Some.Total != 4 {
		t.Errorf("memory: %v", m)
	}
	if s := Swap(st); s.Timestamp != 77 || s.SwapUsageBytes.Value != 8 || s.SwapAvailableBytes.GetValue() != 9 {
		t.Errorf("swap: %v", s)
	}
	if i := IO(st); i.Timestamp != 77 || i.Psi.Some.Avg10 != 1 {
		t.Errorf("io: %v", i)
	}
	st.Memory.Available, st.Swap.Available, st.IO.PSI, st.CPU.PSI = nil, nil, nil, nil
	if Memory(st).AvailableBytes != nil || Swap(st).SwapAvailableBytes != nil || IO(st) != nil || CPU(st).Psi != nil {
		t.Error("unlimited, or without PSI: not left out")
	}
	none := &cgroupdriver.Stats{}
	if CPU(none) != nil || Memory(none) != nil || Swap(none) != nil || IO(none) != nil {
		t.Error("something from nothing")
	}
}

func TestChangesAreTold(t *testing.T) {
	var told []string
	state := func(c *Container) string {
		if c == nil {
			return "-"
		}
		return string(c.State)
	}
	c := &Containers{byID: map[string]*Container{}, byKey: map[string]string{}, exited: map[string]chan struct{}{}}
	c.cfg.Changed = func(old, now *Container) {
		if now != nil {
			if c.byID[now.ID] != now {
				t.Error("told before it can be seen")
			}
		}
		told = append(told, state(old)+">"+state(now))
	}
	ctr := &Container{ID: "a", State: Creating, Config: &runtimeapi.ContainerConfig{}}
	c.set(ctr)
	c.set(&Container{ID: "a", State: Created, Config: ctr.Config})
	c.drop(ctr)
	c.drop(ctr) // nothing is left to tell
	if got := fmt.Sprint(told); got != "[->creating creating>created created>-]" {
		t.Errorf("told %s", got)
	}
}
