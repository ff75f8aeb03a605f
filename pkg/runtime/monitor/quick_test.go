package monitor

import (
	"testing"

	"github.com/seed-9a14075a/cri-server/internal/quickjson/quicktest"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

func TestAppendJSON(t *testing.T) {
	for n := range 20 {
		var st State
		quicktest.Fill(&st, n)
		b, err := marshal(nil, st)
		quicktest.Written(t, st, b, err)
		var e Event
		quicktest.Fill(&e, n)
		b, err = marshal(nil, &e)
		quicktest.Written(t, &e, b, err)
		var k kept
		quicktest.Fill(&k, n)
		b, err = marshal(nil, k)
		quicktest.Written(t, k, b, err)
		var v savedContainer
		quicktest.Fill(&v, n)
		v.Cgroup = (&engine.Cgroup{Unified: "/sys/fs/cgroup/a", V1: map[string]string{"pids": "/p/a", "cpu": "/c/a"}}).Pack()
		if n%2 > 0 {
			v.OOM = (&engine.Cgroup{}).Pack()
		}
		b, err = v.appendJSON(nil)
		quicktest.Written(t, &v, b, err)
	}
}

func BenchmarkPicture(b *testing.B) {
	var v savedContainer
	quicktest.Fill(&v, 1)
	v.OCI, v.UIDs, v.GIDs, v.Engine.Sessions = nil, nil, nil, nil
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.appendJSON(make([]byte, 0, 4<<10)); err != nil {
			b.Fatal(err)
		}
	}
}
