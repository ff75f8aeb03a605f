package main

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// TestUpgradeDuringCreate: the program is replaced while a container waits for its cgroup, before or after that is there.
func TestUpgradeDuringCreate(t *testing.T) {
	n := newNode(t)
	for i := range 12 {
		id := fmt.Sprint("c", i)
		req := n.request(id, "sleep 1000")
		req.Cgroup = n.cgroup(id, "pids")
		ctx, cancel := context.WithTimeout(t.Context(), testns.Patience(30*time.Second))
		upgraded := make(chan error, 1)
		upgrade := func() {
			_, err := n.Upgrade(ctx, n.cfg.Path)
			upgraded <- err
		}
		if i%3 == 0 {
			go upgrade()
		}
		req.FinishCgroup = func(context.Context) error {
			switch i % 3 {
			case 1:
				go upgrade()
			case 2: // the new program has the connection
				go upgrade()
				if _, err := n.List(ctx); err != nil {
					t.Error(err)
				}
			}
			return nil
		}
		if st := n.run(req); st.Status != monitor.Running {
			t.Errorf("%+v", st)
		}
		if err := <-upgraded; err != nil {
			t.Errorf("upgrade: %v", err)
		}
		if v, err := n.Version(ctx); err != nil || v.Pid != n.pid {
			t.Errorf("%+v, %v", v, err)
		}
		if err := n.Delete(ctx, id); err != nil {
			t.Error(err)
		}
		cancel()
	}
}

// TestDeathDuringCreate: cri-monitor is killed while a container waits for its cgroup; the next one makes it, in the cgroup
// that was finished once.
func TestDeathDuringCreate(t *testing.T) {
	n := newNode(t)
	if err := n.Keep(t.Context(), n.cfg, slog.Default()); err != nil {
		t.Fatal(err)
	}
	req := n.request("c", "sleep 1000")
	req.Cgroup = n.cgroup("c", "pids")
	finished := 0
	req.FinishCgroup = func(context.Context) error {
		finished++
		return unix.Kill(n.pid, unix.SIGKILL)
	}
	if st := n.run(req); st.Status != monitor.Running || finished != 1 {
		t.Errorf("%+v, finished %d times", st, finished)
	}
	v, err := n.Version(t.Context())
	if err != nil || v.Pid == n.pid {
		t.Errorf("%+v, %v", v, err)
	}
	n.pid = v.Pid
}
