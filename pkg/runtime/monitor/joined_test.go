package monitor

import (
	"fmt"
	"os"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Namespaces are joined by path of processes only that can't have become others meanwhile.
func TestJoined(t *testing.T) {
	n := newNode(t)
	st := n.run(n.request("pause", "sleep 1000"))
	join := func(id, path string) error {
		req := n.request(id, "sleep 1000")
		req.Spec.Linux.Namespaces = append(req.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.IPCNamespace, Path: path})
		_, err := n.Create(t.Context(), req)
		return err
	}
	held := fmt.Sprintf("/proc/%d/ns/ipc", st.Pid)
	if err := join("joins", held); err != nil {
		t.Error(err)
	}
	for _, pid := range []int{1, os.Getpid(), 1 << 22} {
		if err := join("other", fmt.Sprintf("/proc/%d/ns/ipc", pid)); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("process %d: %v", pid, err)
		}
	}
	if err := n.Kill(t.Context(), "pause"); err != nil {
		t.Fatal(err)
	}
	n.stopped("pause")
	if err := join("late", held); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("of a container that has ended: %v", err)
	}
}
