package sandbox

import (
	"context"
	"io"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func openEmpty(t *testing.T, dir string) *Sandboxes {
	t.Helper()
	s, err := Open(Config{
		RecordsDir: filepath.Join(dir, "records"), StateDir: filepath.Join(dir, "state"), NetnsDir: filepath.Join(dir, "netns"),
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func podOf(id string, st State) *Sandbox {
	return &Sandbox{ID: id, State: st, CreatedAt: time.Now(), Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: id, Namespace: "ns", Uid: id},
	}}
}

func TestUpdateResources(t *testing.T) {
	s := openEmpty(t, t.TempDir())
	ctx := context.Background()
	for id, st := range map[string]State{"aa": Ready, "bb": NotReady, "cc": Creating} {
		if err := s.publish(podOf(id, st)); err != nil {
			t.Fatal(err)
		}
	}
	over, res := &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 1 << 20}, &runtimeapi.LinuxContainerResources{CpuShares: 512}
	for _, tt := range []struct {
		id      string
		refused func(error) bool
	}{{"", errdefs.IsNotFound}, {"dd", errdefs.IsNotFound}, {"cc", errdefs.IsNotFound}, {"bb", errdefs.IsFailedPrecondition}} {
		if err := s.UpdateResources(ctx, tt.id, over, res); !tt.refused(err) {
			t.Errorf("%q: %v", tt.id, err)
		}
	}
	for _, step := range []struct {
		over, res, wantOver, wantRes *runtimeapi.LinuxContainerResources
	}{
		{nil, nil, nil, nil},
		{over, nil, over, nil},
		{nil, res, over, res},
		{res, over, res, over},
	} {
		if err := s.UpdateResources(ctx, "aa", step.over, step.res); err != nil {
			t.Fatal(err)
		}
		sb, err := s.Get("aa")
		if err != nil || !proto.Equal(sb.Overhead, step.wantOver) || !proto.Equal(sb.Resources, step.wantRes) {
			t.Errorf("got %v and %v (%v), want %v and %v", sb.Overhead, sb.Resources, err, step.wantOver, step.wantRes)
		}
	}
}

func TestResourcesAreRecorded(t *testing.T) {
	dir := t.TempDir()
	s := openEmpty(t, dir)
	sb := podOf("a", NotReady)
	sb.Released = true
	sb.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 512, Unified: map[string]string{"memory.high": "1"}}
	if err := s.publish(sb); err != nil {
		t.Fatal(err)
	}
	again := openEmpty(t, dir)
	if err := again.Recover(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	got, err := again.Get("a")
	if err != nil || got.Overhead != nil || !proto.Equal(got.Resources, sb.Resources) {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestChangesAreTold(t *testing.T) {
	var told []string
	state := func(sb *Sandbox) string {
		if sb == nil {
			return "-"
		}
		return string(sb.State)
	}
	s := openEmpty(t, t.TempDir())
	s.cfg.Changed = func(old, now *Sandbox) { told = append(told, state(old)+">"+state(now)) }
	sb := podOf("a", Creating)
	s.set(sb)
	ready := *sb
	ready.State = Ready
	if err := s.publish(&ready); err != nil {
		t.Fatal(err)
	}
	if err := s.Retire("a"); err != nil {
		t.Fatal(err)
	}
	s.drop(&ready)
	s.drop(&ready) // nothing is left to tell
	want := []string{"->creating", "creating>ready", "ready>notready", "notready>-"}
	if len(told) != len(want) {
		t.Fatalf("told %q, want %q", told, want)
	}
	for i := range want {
		if told[i] != want[i] {
			t.Errorf("told %q, want %q", told, want)
		}
	}
}
