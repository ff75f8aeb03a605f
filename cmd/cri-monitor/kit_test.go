package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// waiting are the processes that cri-monitor has made ahead of containers: stubs in pid namespaces of their own.
func (n *node) waiting(pid int) (pids []int) {
	home, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		n.t.Fatal(err)
	}
	names, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range names {
		b, _ := os.ReadFile(name)
		ns, err := os.Readlink(filepath.Join(filepath.Dir(name), "ns/pid"))
		var child, parent int
		var state string
		if k, _ := fmt.Sscanf(string(b), "%d (cri-stub) %s %d", &child, &state, &parent); err == nil && k == 3 && parent == pid && ns != home {
			pids = append(pids, child)
		}
	}
	return pids
}

// stubbed is a container of the kind that a process can wait for.
func (n *node) stubbed(id string) *monitor.CreateRequest {
	req := n.request(id, "exec sleep 1000")
	req.Spec.Hostname = id
	req.Cgroup = n.cgroup(id, "pids")
	return req
}

func (n *node) awaitKit() (pid int) {
	n.t.Helper()
	eventually(n.t, "a stub waits", func() bool {
		list := n.waiting(n.pid)
		if len(list) == 1 {
			pid = list[0]
		}
		return len(list) == 1
	})
	return pid
}

func gone(pid int) bool { return unix.Kill(pid, 0) != nil }

// TestUpgradeWithKit: a stub that waits for a container ends with the program that has made it, and the next one reaps it.
func TestUpgradeWithKit(t *testing.T) {
	n := newNode(t)
	for i := range 3 {
		n.run(n.stubbed(fmt.Sprint("c", i)))
		old := n.awaitKit()
		if _, err := n.Upgrade(t.Context(), n.cfg.Path); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the stub is gone", func() bool { return gone(old) })
		if list := n.waiting(n.pid); len(list) > 0 {
			t.Errorf("made by nobody's wish: %v", list)
		}
	}
}

// TestDeathWithKit: nor does it outlive a cri-monitor that was killed.
func TestDeathWithKit(t *testing.T) {
	n := newNode(t)
	if err := n.Keep(t.Context(), n.cfg, slog.Default()); err != nil {
		t.Fatal(err)
	}
	n.run(n.stubbed("c"))
	old := n.awaitKit()
	if err := unix.Kill(n.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stub is gone", func() bool { return gone(old) })
	v, err := n.Version(t.Context())
	if err != nil || v.Pid == n.pid {
		t.Fatalf("%+v, %v", v, err)
	}
	n.pid = v.Pid
	n.run(n.stubbed("d"))
}
