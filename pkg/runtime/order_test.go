package runtime

import (
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// The clock is set back by hours while containers live: what comes later has later times.
func TestClockSetBack(t *testing.T) {
	c, _, _ := openFake(t, t.TempDir())
	ahead := time.Now().Add(3 * time.Hour)
	old := ctrOf("aa", Created)
	old.CreatedAt, old.Config.Labels = ahead, map[string]string{"io.kubernetes.pod.uid": "u"}
	if err := c.publish(old); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		pod    string
		labels map[string]string
		later  bool
	}{
		"same sandbox": {"5b", nil, true}, "another sandbox of the pod": {"5c", old.Config.Labels, true},
		"another pod": {"5d", map[string]string{"io.kubernetes.pod.uid": "v"}, false}, "a pod without labels": {"5d", nil, false},
	} {
		at := c.createdAt(&Pod{ID: tt.pod}, &runtimeapi.ContainerConfig{Labels: tt.labels})
		if at.After(ahead) != tt.later {
			t.Errorf("%s: created at %v, the one before at %v", name, at, ahead)
		}
	}
	now := time.Now()
	c.Started(monitor.State{ID: "aa", Status: monitor.Running, StartedAt: now, Pid: 5})
	if got, _ := c.Get("aa"); got.State != Running || got.StartedAt.Before(got.CreatedAt) {
		t.Errorf("%+v", got)
	}
	got, err := c.finish("aa", func(n *Container) {
		apply(n, monitor.State{ID: "aa", Status: monitor.Stopped, FinishedAt: now.Add(time.Second), ExitCode: 3})
	})
	if err != nil || got.FinishedAt.Before(got.StartedAt) || got.ExitCode != 3 {
		t.Errorf("%+v %v", got, err)
	}
	wait(t, c)
}
