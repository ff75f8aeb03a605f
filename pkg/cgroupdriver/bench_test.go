package cgroupdriver

import (
	"context"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

func BenchmarkLife(b *testing.B) {
	testns.Root(b)
	driver, err := New(Config{Driver: "cgroupfs", DefaultParent: testns.CgroupParent() + "/pod"})
	if err != nil {
		b.Fatal(err)
	}
	d := driver.(*cgroupfs)
	ctx := context.Background()
	path, _ := d.Path("", "c1")
	res := &specs.LinuxResources{
		CPU:     &specs.LinuxCPU{Shares: p(uint64(102)), Quota: p(int64(10000)), Period: p(uint64(100000))},
		Memory:  &specs.LinuxMemory{Limit: p(int64(64 << 20))},
		Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}, {Allow: true, Type: "c", Access: "m"}},
	}
	if d.v2 {
		res.Devices = nil
	}
	keep, _ := d.Path("", "c0") // the pod's own cgroup stays
	if _, err := d.Create(ctx, keep, nil); err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := d.Delete(ctx, keep); err != nil {
			b.Error(err)
		}
	}()
	b.Run("create and delete", func(b *testing.B) {
		for b.Loop() {
			if _, err := d.Create(ctx, path, res); err != nil {
				b.Fatal(err)
			}
			if err := d.Delete(ctx, path); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("session", func(b *testing.B) {
		for b.Loop() {
			if _, err := d.Create(ctx, keep+"/exec-1", nil); err != nil {
				b.Fatal(err)
			}
			if err := d.Delete(ctx, keep+"/exec-1"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("stats", func(b *testing.B) {
		for b.Loop() {
			if _, err := d.Stats(keep); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("usage", func(b *testing.B) {
		for b.Loop() {
			if _, err := d.Usage(keep); err != nil {
				b.Fatal(err)
			}
		}
	})
}
