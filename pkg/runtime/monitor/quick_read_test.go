package monitor

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/seed-9a14075a/cri-server/internal/quickjson/quicktest"
	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// bothWays reads body as messages are read, and with encoding/json only; quick tells that it shall not be needed.
func bothWays[T any](t *testing.T, body []byte, quick bool) {
	t.Helper()
	var got, want, alone T
	err, wantErr := unmarshal(body, &got), json.Unmarshal(body, &want)
	if (err == nil) != (wantErr == nil) {
		t.Errorf("%s: %v, want %v", body, err, wantErr)
	}
	if d := cmp.Diff(want, got); err == nil && d != "" {
		t.Errorf("%s: %s", body, d)
	}
	if ok := any(&alone).(quickReader).quickRead(body); ok != quick {
		t.Errorf("%s: read alone: %v", body, ok)
	}
}

func request() *CreateRequest {
	adj := -7
	return &CreateRequest{
		ID: "id", Seccomp: []byte{1, 2, 3}, Start: true, LogDir: "/logs", LogPath: "0.log", Stdin: true, StdinOnce: true,
		Cgroup: &engine.Cgroup{Unified: "/u", V1: map[string]string{"pids": "/p", "name=systemd": "/s"}, Shared: []string{"pids"}},
		Rootfs: rootfs.Rootfs{Lower: []string{"/a", "/b"}, Upper: "/u", Work: "/w", Options: []string{"volatile"}},
		Spec: &specs.Spec{
			Version: "1.0.2", Hostname: "h", Root: &specs.Root{Path: "rootfs", Readonly: true}, Annotations: map[string]string{"a": "b<"},
			Process: &specs.Process{
				Terminal: true, User: specs.User{UID: 1, GID: 4294967295, AdditionalGids: []uint32{0, 1}}, Cwd: "/", NoNewPrivileges: true,
				Args: []string{"sh", "-c", "a && \"b\" < ü\n"}, Env: []string{"A=1"}, OOMScoreAdj: &adj, ApparmorProfile: "x",
				Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL"}, Ambient: []string{"CAP_CHOWN"}},
				Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 2, Soft: 1}},
			},
			Mounts: []specs.Mount{{Destination: "/d", Type: "bind", Source: "/s", Options: []string{"ro"},
				UIDMappings: []specs.LinuxIDMapping{{ContainerID: 1, HostID: 2, Size: 3}}}},
			Linux: &specs.Linux{
				Sysctl: map[string]string{"a": "1"}, CgroupsPath: "/c", MaskedPaths: []string{"/m"}, ReadonlyPaths: []string{"/r"},
				Namespaces: []specs.LinuxNamespace{{Type: "pid"}, {Type: "network", Path: "/n"}},
				Seccomp:    &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}, RootfsPropagation: "slave",
			},
		},
	}
}

func TestQuickRead(t *testing.T) {
	r := request()
	whole, err := marshal(nil, r)
	if err != nil {
		t.Fatal(err)
	}
	bothWays[CreateRequest](t, whole, true)
	r.Spec.Process.Env = []string{"B=\xff"}
	r.OCI, r.OOM = &OCIRuntime{Path: "/runc"}, r.Cgroup
	odd, err := marshal(nil, r)
	if err != nil {
		t.Fatal(err)
	}
	bothWays[CreateRequest](t, odd, true)
	bothWays[CreateRequest](t, []byte(strings.Replace(string(whole), `"id":`, `"newer":{"a":1},"id":`, 1)), false)
	bothWays[CreateRequest](t, []byte(strings.Replace(string(whole), `"id":`, `"ID":`, 1)), false)
	bothWays[CreateRequest](t, []byte(strings.Replace(string(whole), `"cwd":`, `"newer":{"a":1},"cwd":`, 1)), true)
	bothWays[CreateRequest](t, []byte(strings.Replace(string(whole), `"uid":1`, `"uid":-1`, 1)), false)
	for i := 0; i < len(whole); i += 7 {
		bothWays[CreateRequest](t, whole[:i], false)
	}
	for body, quick := range map[string]bool{
		`{}`: true, `{"id":"a"}`: true, `{"id":"a","signal":-15}`: true, `{"id":"a","width":1,"height":2}`: false,
		`{"id":"a","session":7}`: false, `{"id":1}`: false, `{"id":"a"`: false, ``: false,
	} {
		bothWays[target](t, []byte(body), quick)
	}
}

func TestQuickState(t *testing.T) {
	for n := range 20 {
		var st State
		quicktest.Fill(&st, n)
		b, err := marshal(nil, st)
		if err != nil {
			t.Fatal(err)
		}
		bothWays[State](t, b, true)
		e, err := marshal(nil, &Event{Seq: uint64(n), Type: "started", State: st})
		if err != nil {
			t.Fatal(err)
		}
		bothWays[Event](t, e, true)
		bothWays[Event](t, e[:len(e)-1], false)
	}
	for body, quick := range map[string]bool{
		`{"id":"a","pid":1}`: true, `{"id":"a","newer":1}`: false, `{"created_at":"x"}`: false, `{"created_at":null}`: true, `{"created_at":1}`: false,
		`{"created_at":"2026-01-01T00:00:00+01:00"}`: true,
	} {
		bothWays[State](t, []byte(body), quick)
	}
}

// No field is lost, whatever there may be in it.
func TestQuickReadOfAll(t *testing.T) {
	for n := range 40 {
		var r CreateRequest
		quicktest.Fill(&r, n)
		b, err := marshal(nil, &r)
		if err != nil {
			t.Fatal(err)
		}
		var got, want CreateRequest
		if err := json.Unmarshal(b, &want); err != nil {
			t.Fatal(err)
		}
		if err := unmarshal(b, &got); err != nil {
			t.Error(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", b, d)
		}
	}
}

func FuzzQuickRead(f *testing.F) {
	b, err := marshal(nil, request())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(b))
	f.Fuzz(func(t *testing.T, body string) {
		var got, want CreateRequest
		if got.quickRead([]byte(body)) {
			if err := json.Unmarshal([]byte(body), &want); err != nil || !cmp.Equal(got, want) {
				t.Errorf("%s: %s, %v", body, cmp.Diff(want, got), err)
			}
		}
	})
}

func BenchmarkReadCreate(b *testing.B) {
	body, err := marshal(nil, request())
	if err != nil {
		b.Fatal(err)
	}
	b.Run("quick", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var r CreateRequest
			if !r.quickRead(body) {
				b.Fatal("not read")
			}
		}
	})
	b.Run("json", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var r CreateRequest
			if err := json.Unmarshal(body, &r); err != nil {
				b.Fatal(err)
			}
		}
	})
}
