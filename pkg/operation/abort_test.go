package operation

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/containerd/errdefs"
)

func TestAbort(t *testing.T) {
	g := NewGroup(Options{})
	ctx := context.Background()
	if err := g.Abort(ctx, "none", errdefs.ErrAborted); err != nil || g.Active("none") {
		t.Errorf("no operation: %v", err)
	}
	begun, undone := make(chan bool), false
	result := make(chan error, 1)
	go func() {
		_, err := Do(ctx, g, "k", 0, func(ctx context.Context, op *Op) (int, error) {
			op.Undo("it", func(context.Context) error { undone = true; return nil })
			close(begun)
			<-ctx.Done()
			return 0, ctx.Err()
		})
		result <- err
	}()
	<-begun
	if !g.Active("k") {
		t.Error("not active")
	}
	late, cancel := context.WithCancel(ctx)
	cancel()
	begun2, stuck := make(chan bool), make(chan bool)
	go func() {
		_, _ = Do(ctx, g, "stuck", 0, func(context.Context, *Op) (int, error) { close(begun2); <-stuck; return 0, nil })
	}()
	<-begun2
	if err := g.Abort(late, "stuck", errdefs.ErrAborted); !errors.Is(err, context.Canceled) {
		t.Errorf("one that does not end: %v", err)
	}
	close(stuck)
	if err := g.Abort(ctx, "k", errdefs.ErrFailedPrecondition); err != nil {
		t.Error(err)
	}
	if !undone || g.Active("k") {
		t.Error("Abort came back before it was taken back")
	}
	if err := <-result; !errdefs.IsFailedPrecondition(err) {
		t.Errorf("the caller got %v", err)
	}
}

// TestNothingKept: with Keep below 0 a retry does the work again, and gets the present's result.
func TestNothingKept(t *testing.T) {
	g := NewGroup(Options{Log: slog.New(slog.DiscardHandler), Keep: -1})
	orphan(t, g, "k", errors.New("once"))
	if v, err := Do(t.Context(), g, "k", 0, func(context.Context, *Op) (int, error) { return 2, nil }); v != 2 || err != nil {
		t.Errorf("%d, %v", v, err)
	}
	if len(g.calls) != 0 {
		t.Errorf("left over: %v", g.calls)
	}
}

// TestEndedIsNotJoined: with Keep below 0 who comes after the end has the work done again, even if a caller of before has not
// fetched his result yet.
func TestEndedIsNotJoined(t *testing.T) {
	g := NewGroup(Options{Log: slog.New(slog.DiscardHandler), Keep: -1})
	slow, err := g.join(t.Context(), "k", 0, func(context.Context, *Op) (any, error) { return 1, nil })
	if err != nil {
		t.Fatal(err)
	}
	<-slow.done
	if v, err := Do(t.Context(), g, "k", 0, func(context.Context, *Op) (int, error) { return 2, nil }); v != 2 || err != nil {
		t.Errorf("%d, %v", v, err)
	}
	if !g.leave(t.Context(), slow) || slow.value != 1 {
		t.Errorf("the first caller got %v", slow.value)
	}
	if len(g.calls) != 0 {
		t.Errorf("left over: %v", g.calls)
	}
}

// TestParallel: what failed may be another thing than what was begun last.
func TestParallel(t *testing.T) {
	for name, c := range map[string]struct {
		o    Options
		want string
	}{"one after the other": {Options{}, "last: network: it failed"}, "side by side": {Options{Parallel: true}, "network: it failed"}} {
		_, err := Do(t.Context(), NewGroup(c.o), "k", 0, func(_ context.Context, op *Op) (int, error) {
			op.Stage("network")
			op.Stage("last")
			return 0, errors.New("network: it failed")
		})
		if err == nil || err.Error() != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}
