package monitor

import (
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestStock: an exec takes a connection that is there, and leaves one for the next.
func TestStock(t *testing.T) {
	n := newNode(t)
	n.run(n.request("c", `sleep 1000`))
	for round := range 20 {
		n.stocked.Wait()
		before := slices.Clone(n.idle)
		if len(before) == 0 {
			t.Fatalf("round %d: no connection waits for an exec", round)
		}
		x, err := n.Exec(t.Context(), &ExecRequest{ID: "c", Process: &specs.Process{Args: []string{"true"}}})
		if err != nil {
			t.Fatal(err)
		}
		if x.s.uc != before[len(before)-1] {
			t.Errorf("round %d: the exec made a connection of its own", round)
		}
		if code, err := x.Wait(t.Context()); code != 0 || err != nil {
			t.Errorf("exec: %d, %v", code, err)
		}
		x.Close()
	}
	x, err := n.Exec(t.Context(), &ExecRequest{ID: "c", Process: &specs.Process{Args: []string{"true"}}})
	if err != nil {
		t.Fatal(err)
	}
	client, err := Dial(t.Context(), n.socket)
	if err != nil {
		t.Fatal(err)
	}
	client.idle[0].Close()
	client.idle = nil
	client.stock()
	client.Close() // while it connects
	client.stock()
	client.stocked.Wait()
	if len(client.idle) > 0 {
		t.Error("a closed client keeps connections")
	}
	x.Close()
}
