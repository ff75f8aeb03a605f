package monitor

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

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
		var r CreateRequest
		quicktest.Fill(&r, n)
		if n%2 > 0 && r.Spec != nil {
			r.Spec.Linux, r.Spec.Process = request().Spec.Linux, request().Spec.Process
		}
		b, err = marshal(nil, &r)
		quicktest.Written(t, &r, b, err)
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

// What most requests have, and some that have more.
func TestAppendRequest(t *testing.T) {
	for name, change := range map[string]func(*CreateRequest){
		"full":       func(*CreateRequest) {},
		"usual":      func(r *CreateRequest) { r.Spec.Mounts[0].UIDMappings, r.Spec.Linux.RootfsPropagation = nil, "" },
		"no spec":    func(r *CreateRequest) { r.Spec = nil },
		"no process": func(r *CreateRequest) { r.Spec.Process = nil },
		"empty":      func(r *CreateRequest) { *r = CreateRequest{} },
		"empty spec": func(r *CreateRequest) { r.Spec = &specs.Spec{} },
		"empty parts": func(r *CreateRequest) {
			r.Spec = &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}, Root: &specs.Root{}}
		},
		"empty cgroup":   func(r *CreateRequest) { r.Cgroup = &engine.Cgroup{} },
		"empty lists":    func(r *CreateRequest) { r.Spec.Mounts, r.Spec.Annotations = []specs.Mount{}, map[string]string{} },
		"bytes":          func(r *CreateRequest) { r.Spec.Process.Env = []string{"A=\xff"} },
		"empty env":      func(r *CreateRequest) { r.Spec.Process.Env = []string{} },
		"bad utf-8":      func(r *CreateRequest) { r.Spec.Process.Args = []string{"\xff"} },
		"hooks":          func(r *CreateRequest) { r.Spec.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/x"}}} },
		"devices":        func(r *CreateRequest) { r.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x"}} },
		"empty resource": func(r *CreateRequest) { r.Spec.Linux.Resources = &specs.LinuxResources{} },
		"selinux":        func(r *CreateRequest) { r.Spec.Process.SelinuxLabel = "x" },
	} {
		t.Run(name, func(t *testing.T) {
			r := request()
			change(r)
			b, err := marshal(nil, r)
			quicktest.Written(t, r, b, err)
			bothWays[CreateRequest](t, b, r.Spec != nil)
		})
	}
}

// Parts that are written field by field have no others than those: a newer runtime-spec may bring some.
func TestAppendParts(t *testing.T) {
	for n := 1; n < 10; n++ {
		r := request()
		m := &r.Spec.Mounts[0]
		quicktest.Fill(m, n)
		m.UIDMappings, m.GIDMappings, r.Spec.Linux.RootfsPropagation = nil, nil, "" // left to encoding/json with all that they are in
		quicktest.Fill(&r.Spec.Linux.Namespaces[0], n)
		quicktest.Fill(r.Spec.Root, n)
		quicktest.Fill(r.Spec.Process.Capabilities, n)
		b, err := marshal(nil, r)
		quicktest.Written(t, r, b, err)
		bothWays[CreateRequest](t, b, true)
	}
}

func BenchmarkWriteCreate(b *testing.B) {
	r := request()
	r.Spec.Mounts[0].UIDMappings, r.Spec.Linux.RootfsPropagation = nil, ""
	b.ReportAllocs()
	for b.Loop() {
		if _, err := marshal(make([]byte, 0, 8<<10), r); err != nil {
			b.Fatal(err)
		}
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
