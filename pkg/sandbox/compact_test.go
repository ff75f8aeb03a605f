package sandbox

import (
	"context"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/network"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
)

// full is a sandbox of which every field says something.
func full() *Sandbox {
	at := time.Unix(1000, 5).UTC()
	return &Sandbox{
		ID: "aa", Handler: "native", State: NotReady, Stopping: true, Released: true, Broken: "b", Leftover: true, CreatedAt: at, Pid: 77, NetNS: "/run/netns/cri-aa",
		Config: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "a", Uid: "u"}, Labels: map[string]string{"a": "b"}},
		Network: &network.Result{IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}, Interface: "eth0",
			HostInterface: "veth1", Network: "pods", Raw: []byte(`{}`)},
		CgroupPath: "/pods/aa", CgroupParent: "/pods", Files: Files{Hostname: "/h"},
		Overhead: &runtimeapi.LinuxContainerResources{CpuShares: 3}, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 4},
		Timeline: operation.Timeline{Key: "run b/a/u/0", Begin: at, Total: 7, Stages: []operation.Stage{{Name: "files"}}, Parts: []operation.Stage{{Name: "hosts"}}},
	}
}

func TestCompact(t *testing.T) {
	sb := full()
	for v, i := reflect.ValueOf(*sb), 0; i < v.NumField(); i++ {
		if v.Field(i).IsZero() {
			t.Errorf("the sample says nothing of %s", v.Type().Field(i).Name)
		}
	}
	s := openEmpty(t, t.TempDir())
	s.set(sb)
	s.cfg.Changed = func(_, _ *Sandbox) { t.Error("a copy is no change") }
	s.Compact(context.Background())
	next, err := s.Get("aa")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(sb, next, protocmp.Transform(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("a copy differs:\n%s", d)
	}
	if next == sb || next.Config == sb.Config || next.Network == sb.Network {
		t.Error("the copy shares memory")
	}
}

// over is a context that ends as soon as somebody waits with it.
type over struct{ context.Context }

func (over) Err() error { return nil }

// Whoever changes a sandbox may wait for a file system that does not answer: the end of the server does not wait for that.
func TestCompactGivesUp(t *testing.T) {
	s := openEmpty(t, t.TempDir())
	s.set(full())
	unlock, err := s.edits.Lock(t.Context(), "aa")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Compact(over{ctx})
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Error("it waits on")
	}
}
