package native

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// testCgroup makes a cgroup for one container in the pids, freezer and unified hierarchies, as far as they are there.
func testCgroup(t testing.TB, name string) *engine.Cgroup {
	t.Helper()
	cg := &engine.Cgroup{V1: map[string]string{}}
	for _, h := range []string{"pids", "freezer", "unified", ""} {
		mount := filepath.Join("/sys/fs/cgroup", h) // itself where all is on v2
		if _, err := os.Stat(filepath.Join(mount, "cgroup.procs")); err != nil {
			continue
		}
		parent := filepath.Join(mount, testns.CgroupParent())
		dir := filepath.Join(parent, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			// Kill sends signals; what they end leaves the cgroup a moment later.
			for end := time.Now().Add(5 * time.Second); errors.Is(os.Remove(dir), unix.EBUSY) && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
			_ = os.Remove(parent) // when it is the last
		})
		if h == "unified" || h == "" {
			cg.Unified = dir
		} else {
			cg.V1[h] = dir
		}
	}
	return cg
}

func BenchmarkLife(b *testing.B) {
	for _, v := range []struct {
		name   string
		userns bool
		cgroup bool
	}{{"plain", false, false}, {"cgroups", false, true}, {"userns", true, true}} {
		b.Run(v.name, func(b *testing.B) {
			bed := newBed(b)
			spec := newSpec("/bin/busybox", "true")
			if v.userns {
				withUserNS(spec)
			}
			c := bed.config(b, spec)
			if v.cgroup {
				c.Cgroup = testCgroup(b, "bench")
			}
			b.ResetTimer()
			for b.Loop() {
				bed.life(b, c)
			}
		})
	}
}

// BenchmarkParallel starts eight containers at a time; ns/op is for all of them.
func BenchmarkParallel(b *testing.B) {
	const n = 8
	bed := newBed(b)
	var configs [n]*engine.Config
	for i := range configs {
		configs[i] = bed.config(b, newSpec("/bin/busybox", "true"))
	}
	b.ResetTimer()
	for b.Loop() {
		var wg sync.WaitGroup
		for _, c := range configs {
			wg.Go(func() { bed.life(b, c) })
		}
		wg.Wait()
	}
}

func (b *bed) life(t testing.TB, c *engine.Config) {
	ctx := context.Background()
	ct, err := b.Create(ctx, c)
	if err != nil {
		t.Error(err)
		return
	}
	if err := ct.Start(ctx); err != nil {
		t.Error(err)
	}
	if _, err := ct.Process().Child().Wait(ctx); err != nil {
		t.Error(err)
	}
	if err := ct.Delete(ctx); err != nil {
		t.Error(err)
	}
}

func BenchmarkExec(b *testing.B) {
	bed := newBed(b)
	r, w, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	c := bed.config(b, newSpec("/bin/cat"))
	c.Stdin = r
	ct := bed.create(b, c)
	r.Close()
	if err := ct.Start(context.Background()); err != nil {
		b.Fatal(err)
	}
	spec := newSpec("/bin/busybox", "true").Process
	b.ResetTimer()
	for b.Loop() {
		p, err := ct.Exec(context.Background(), &engine.ExecConfig{Process: spec})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := p.Child().Wait(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
	_, _ = io.WriteString(w, "")
}
