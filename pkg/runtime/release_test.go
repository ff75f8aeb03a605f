package runtime

import (
	"errors"
	"testing"
	"time"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// What is left of a container in the kernel is taken down at its end, and not once more when it is removed; unless there may be
// something again.
func TestReleasedOnce(t *testing.T) {
	stopped := monitor.State{ID: "aa", Status: monitor.Stopped, FinishedAt: time.Now()}
	for name, tt := range map[string]struct {
		state   State
		between func(c *Containers, m *fakeMonitor)
		first   error // of cri-monitor's delete
		atEnd   int   // deletions
		removed int
	}{
		"removed after its end":                {Running, nil, nil, 1, 1},
		"cri-monitor could not forget it":      {Running, func(_ *Containers, m *fakeMonitor) { m.delete = nil }, errors.New("no"), 1, 2},
		"cri-monitor has it again":             {Running, func(c *Containers, _ *fakeMonitor) { c.Exited(stopped) }, nil, 1, 2},
		"its creation failed and may go on":    {Unknown, nil, nil, 1, 3},
		"ended before this server was started": {Exited, nil, nil, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			c, m, g := openFake(t, t.TempDir())
			ctr := ctrOf("aa", tt.state)
			if err := c.publish(ctr); err != nil {
				t.Fatal(err)
			}
			m.delete = tt.first
			switch tt.state {
			case Running:
				c.Exited(stopped)
				wait(t, c)
			default:
				if err := c.release(t.Context(), ctr); err != nil {
					t.Fatal(err)
				}
			}
			if m.deleted != tt.atEnd {
				t.Errorf("%d deletions at its end", m.deleted)
			}
			if tt.between != nil {
				tt.between(c, m)
			}
			if err := c.Remove(t.Context(), "aa"); err != nil || m.deleted != tt.removed {
				t.Errorf("removed: %v, %d deletions", err, m.deleted)
			}
			if len(g.deleted) == 0 || c.Known("aa") || len(c.released) > 0 {
				t.Errorf("cgroups deleted: %q; still known: %v; noted: %v", g.deleted, c.Known("aa"), c.released)
			}
		})
	}
}
