package runtime

import (
	"context"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/internal/deepcopy"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
)

// full is a container of which every field says something.
func full() *Container {
	at := func(s int64) time.Time { return time.Unix(1000+s, 5).UTC() }
	line := operation.Timeline{Key: "create 5b/a/0", Begin: at(0), Total: 7, Stages: []operation.Stage{{Name: "image"}}}
	return &Container{
		ID: "aa", SandboxID: "5b", Handler: "native", ImageID: "sha256:1", LogDir: "/l", LogPath: "/l/a.log", State: Exited,
		Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "a", Attempt: 2}, Labels: map[string]string{"a": "b"},
			Envs: []*runtimeapi.KeyValue{{Key: "k", Value: []byte("v")}}},
		CreatedAt: at(1), StartedAt: at(2), FinishedAt: at(3), ExitCode: 9, Reason: "r", Message: "m", Pid: 77, CgroupPath: "/pods/aa",
		Rootfs: rootfs.Rootfs{Lower: []string{"/1"}, Upper: "/u", Work: "/w"}, StopSignal: unix.SIGQUIT,
		Resources: &runtimeapi.LinuxContainerResources{CpuShares: 3}, Process: &specs.Process{Args: []string{"x"}, Env: []string{"E=\xff"}},
		Filter: "f", Timeline: line, StartTimeline: line, Broken: "b", Leftover: true,
	}
}

func TestCopy(t *testing.T) {
	ctr := full()
	for v, i := reflect.ValueOf(*ctr), 0; i < v.NumField(); i++ {
		if v.Field(i).IsZero() {
			t.Errorf("the sample says nothing of %s", v.Type().Field(i).Name)
		}
	}
	next, err := deepcopy.Of(new(deepcopy.Copier), ctr)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(ctr, next, protocmp.Transform()); d != "" {
		t.Errorf("a copy differs:\n%s", d)
	}
	if next == ctr || next.Config == ctr.Config || next.Process == ctr.Process {
		t.Error("the copy shares memory")
	}
}

// TestCompact changes containers while they are copied: no change is lost.
func TestCompact(t *testing.T) {
	c, _, _ := openFake(t, t.TempDir())
	c.cfg.Changed = func(_, now *Container) {}
	ctr := full()
	ctr.Broken = ""
	c.set(ctr)
	before, _ := c.Get("aa")
	told := 0
	c.cfg.Changed = func(_, _ *Container) { told++ }
	c.Compact(context.Background())
	after, _ := c.Get("aa")
	if after == before || told != 0 {
		t.Errorf("copied: %v, told of it %d times", after != before, told)
	}
	var both sync.WaitGroup
	both.Add(2)
	go func() {
		defer both.Done()
		for range 200 {
			if _, err := c.change("aa", func(ctr *Container) { ctr.ExitCode++ }); err != nil {
				t.Error(err)
			}
		}
	}()
	go func() {
		defer both.Done()
		for range 200 {
			c.Compact(context.Background())
		}
	}()
	both.Wait()
	if ctr, _ := c.Get("aa"); ctr.ExitCode != 9+200 {
		t.Errorf("%d changes were lost", 209-ctr.ExitCode)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	before, _ = c.Get("aa")
	c.Compact(ended)
	if after, _ := c.Get("aa"); after != before {
		t.Error("copied after the context's end")
	}
}

// over is a context that ends as soon as somebody waits with it.
type over struct{ context.Context }

func (over) Err() error { return nil }

// Whoever changes a container may wait for a file system that does not answer: the end of the server does not wait for that.
func TestCompactGivesUp(t *testing.T) {
	c, _, _ := openFake(t, t.TempDir())
	c.cfg.Changed = func(_, _ *Container) {}
	c.set(full())
	unlock, err := c.edits.Lock(t.Context(), "aa")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Compact(over{ctx})
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Error("it waits on")
	}
}
