package sandbox

import (
	"context"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// launchMonitor answers a create and a start with what it is told.
type launchMonitor struct {
	Monitor
	created  monitor.State
	startErr error
	starts   int
}

func (m *launchMonitor) Create(_ context.Context, req *monitor.CreateRequest) (monitor.State, error) {
	if !req.Start {
		return monitor.State{}, errdefs.ErrInvalidArgument
	}
	return m.created, nil
}

func (m *launchMonitor) Start(context.Context, string) (monitor.State, error) {
	m.starts++
	return monitor.State{Status: monitor.Running, Pid: 8}, m.startErr
}

func TestLaunch(t *testing.T) {
	for name, tt := range map[string]struct {
		m      launchMonitor
		starts int
		pid    int
		want   func(error) bool
	}{
		"in one call":          {launchMonitor{created: monitor.State{Status: monitor.Running, Pid: 7}}, 0, 7, nil},
		"an older cri-monitor": {launchMonitor{created: monitor.State{Status: monitor.Created, Pid: 7}}, 1, 8, nil},
		"not executed": {launchMonitor{created: monitor.State{Status: monitor.Created, StartError: "exec format error"}}, 0, 0,
			errdefs.IsFailedPrecondition},
		"ended": {launchMonitor{created: monitor.State{Status: monitor.Stopped}, startErr: errdefs.ErrFailedPrecondition}, 1, 0,
			errdefs.IsFailedPrecondition},
	} {
		s := &Sandboxes{cfg: Config{Monitor: &tt.m}}
		st, err := s.launch(t.Context(), &monitor.CreateRequest{ID: "a"})
		if tt.want == nil && (err != nil || st.Pid != tt.pid) || tt.want != nil && !tt.want(err) || tt.m.starts != tt.starts {
			t.Errorf("%s: %+v, %v, %d starts", name, st, err, tt.m.starts)
		}
	}
}
