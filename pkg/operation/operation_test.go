package operation

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func quiet() *Group { return NewGroup(Options{Log: slog.New(slog.DiscardHandler)}) }

// waiting blocks until n callers wait for key.
func waiting(t *testing.T, g *Group, key string, n int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		g.mu.Lock()
		c := g.calls[key]
		ok := c != nil && c.waiters == n
		g.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s never had %d callers", key, n)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestCallersJoin(t *testing.T) {
	g := quiet()
	var runs atomic.Int32
	release := make(chan struct{})
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			got, err := Do(t.Context(), g, "run a", time.Minute, func(context.Context, *Op) (int, error) {
				runs.Add(1)
				<-release
				return 7, nil
			})
			if got != 7 || err != nil {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
	waiting(t, g, "run a", 5)
	close(release)
	wg.Wait()
	if runs.Load() != 1 {
		t.Errorf("%d runs", runs.Load())
	}
	if len(g.calls) != 0 {
		t.Error("a claimed result stayed")
	}
}

type valueKey struct{}

func TestOutlivesItsCaller(t *testing.T) {
	g := quiet()
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), valueKey{}, "v"))
	release, at := make(chan struct{}), make(chan struct{})
	fn := func(ctx context.Context, op *Op) (string, error) {
		op.Stage("network")
		close(at)
		<-release
		if err := ctx.Err(); err != nil {
			return "", err
		}
		return ctx.Value(valueKey{}).(string), nil
	}
	done := make(chan error)
	go func() {
		_, err := Do(ctx, g, "run a", time.Minute, fn)
		done <- err
	}()
	<-at
	cancel()
	err := <-done
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), `still at stage "network"`) {
		t.Errorf("the caller that left got %v", err)
	}
	if _, err := Do(ctx, g, "run a", 0, fn); !errors.Is(err, context.Canceled) {
		t.Errorf("a dead caller got %v", err)
	}
	close(release)
	if err := g.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The group is stopping, the retry still gets what was done.
	got, err := Do(t.Context(), g, "run a", time.Minute, func(context.Context, *Op) (string, error) { return "again", nil })
	if got != "v" || err != nil {
		t.Errorf("the retry got %q, %v", got, err)
	}
	if _, err := Do(t.Context(), g, "run a", time.Minute, fn); !errdefs.IsUnavailable(err) {
		t.Errorf("after Wait: %v", err)
	}
}

// orphan leaves a finished, unclaimed result behind.
func orphan(t *testing.T, g *Group, key string, fail error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	_, err := Do(ctx, g, key, time.Minute, func(context.Context, *Op) (int, error) {
		go func() { cancel(); waiting(t, g, key, 0); close(release) }()
		<-release
		return 1, fail
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for len(g.Running()) > 0 {
		if time.Now().After(deadline) {
			t.Fatal("never ended")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestKeptResults(t *testing.T) {
	second := func(context.Context, *Op) (int, error) { return 2, nil }

	g := quiet()
	orphan(t, g, "k", errdefs.ErrNotFound)
	if _, err := Do(t.Context(), g, "k", 0, second); !errdefs.IsNotFound(err) {
		t.Errorf("the retry must learn of the failure: %v", err)
	}
	if got, err := Do(t.Context(), g, "k", 0, second); got != 2 || err != nil {
		t.Errorf("claimed once: %v, %v", got, err)
	}

	orphan(t, g, "k", nil)
	g.Forget("k")
	g.Forget("other")
	if got, _ := Do(t.Context(), g, "k", 0, second); got != 2 {
		t.Error("forgotten, but returned")
	}

	orphan(t, g, "k", nil)
	if _, err := Do(t.Context(), g, "k", 0, func(context.Context, *Op) (string, error) { return "", nil }); !errdefs.IsInternal(err) {
		t.Errorf("other type: %v", err)
	}

	g = NewGroup(Options{Keep: time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	orphan(t, g, "k", nil)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		g.mu.Lock()
		n := len(g.calls)
		g.mu.Unlock()
		if n == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the result never expired")
		}
	}
}

func TestFailureNamesItsStageAndUndoes(t *testing.T) {
	var order []string
	step := func(name string, err error) func(context.Context) error {
		return func(ctx context.Context) error {
			if ctx.Err() != nil {
				t.Errorf("%s: the operation's end reached the undo", name)
			}
			if _, ok := ctx.Deadline(); !ok {
				t.Errorf("%s: no deadline", name)
			}
			order = append(order, name)
			return err
		}
	}
	var finished Timeline
	g := NewGroup(Options{Log: slog.New(slog.DiscardHandler), Done: func(_ string, tl Timeline, _ error) { finished = tl }})
	_, err := Do(t.Context(), g, "run a", time.Millisecond, func(ctx context.Context, op *Op) (int, error) {
		op.Stage("cgroup")
		op.Undo("cgroup", step("cgroup", nil))
		FromContext(ctx).Stage("network")
		op.Undo("address", step("address", errors.New("pool is gone")))
		op.Undo("panics", func(context.Context) error { panic("bad undo") })
		<-ctx.Done()
		return 0, fmt.Errorf("bridge: %w", ctx.Err())
	})
	if !errdefs.IsDeadlineExceeded(err) || !strings.HasPrefix(err.Error(), "network: the operation's 1ms are over: bridge: ") ||
		!strings.Contains(err.Error(), "address: pool is gone") || !strings.Contains(err.Error(), "panics: panic: bad undo") {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"address", "cgroup"}, order); diff != "" {
		t.Error(diff)
	}
	var names []string
	for _, s := range finished.Stages {
		names = append(names, s.Name)
		if s.Duration <= 0 {
			t.Errorf("stage %+v", s)
		}
	}
	if diff := cmp.Diff([]string{"cgroup", "network", "undo"}, names); diff != "" {
		t.Error(diff)
	}
	if finished.Running || finished.Error == "" || finished.Total < time.Millisecond || finished.Key != "run a" {
		t.Errorf("%+v", finished)
	}
	if _, err := json.Marshal(finished); err != nil {
		t.Error(err)
	}
}

func TestErrorsKeepTheirKind(t *testing.T) {
	for _, kind := range []error{errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrInvalidArgument} {
		_, err := Do(t.Context(), quiet(), "k", 0, func(_ context.Context, op *Op) (int, error) {
			op.Stage("image")
			op.Undo("x", func(context.Context) error { return errdefs.ErrUnavailable })
			return 0, fmt.Errorf("pull: %w", kind)
		})
		if !errors.Is(err, kind) || errdefs.IsUnavailable(err) || !strings.HasPrefix(err.Error(), "image: pull: ") {
			t.Errorf("%v: %v", kind, err)
		}
	}
}

func TestPanicAndGoexit(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic("boom") }, "goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			g := NewGroup(Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
			undone := false
			_, err := Do(t.Context(), g, "k", 0, func(_ context.Context, op *Op) (int, error) {
				op.Stage("start")
				op.Undo("x", func(context.Context) error { undone = true; return nil })
				end()
				return 1, nil
			})
			if !errdefs.IsInternal(err) || !strings.HasPrefix(err.Error(), "start: ") || !undone {
				t.Errorf("%v, undone %v", err, undone)
			}
			if name == "panic" && !strings.Contains(log.String(), "TestPanicAndGoexit") {
				t.Errorf("no stack in the log: %s", log.String())
			}
		})
	}
}

func TestWaitAndCancel(t *testing.T) {
	g := quiet()
	started := make(chan struct{})
	result := make(chan error)
	go func() {
		_, err := Do(t.Context(), g, "run a", 0, func(ctx context.Context, op *Op) (any, error) {
			op.Stage("image")
			close(started)
			<-ctx.Done()
			return nil, ctx.Err()
		})
		result <- err
	}()
	<-started
	if got := g.Running(); len(got) != 1 || got[0].At() != "image" || !got[0].Running {
		t.Errorf("%+v", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := g.Wait(ctx); !errdefs.IsDeadlineExceeded(err) || !strings.Contains(err.Error(), `run a (stage "image")`) {
		t.Error(err)
	}
	g.Cancel()
	if err := g.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-result; !errdefs.IsUnavailable(err) || errdefs.IsCanceled(err) {
		t.Error(err)
	}
}

func TestParts(t *testing.T) {
	g := quiet()
	var line Timeline
	_, err := Do(t.Context(), g, "k", 0, func(_ context.Context, op *Op) (int, error) {
		op.Stage("all")
		outer := op.Part("outer")
		op.Part("never ended")
		op.Part("inner")()
		outer()
		line = op.Timeline()
		return 0, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(line.Stages) != 1 || len(line.Parts) != 2 || line.Parts[0].Name != "inner" || line.Parts[1].Name != "outer" {
		t.Fatalf("%+v", line)
	}
	inner, outer := line.Parts[0], line.Parts[1]
	if inner.Start < outer.Start || inner.Start+inner.Duration > outer.Start+outer.Duration || outer.Start < line.Stages[0].Start {
		t.Errorf("%+v", line)
	}
}

func TestNilOp(t *testing.T) {
	op := FromContext(t.Context())
	op.Stage("x")
	op.Part("x")()
	op.Undo("x", nil)
	if s, d := op.Current(); s != "" || d != 0 || op.Key() != "" || op.Timeline().Key != "" {
		t.Error("a nil Op must do nothing")
	}
	if v, err := Do(t.Context(), quiet(), "k", 0, func(context.Context, *Op) (error, error) { return nil, nil }); v != nil || err != nil {
		t.Errorf("nil result: %v, %v", v, err)
	}
}

// Many callers, some impatient: each either gets the one result or its own context's error, and nothing stays.
func TestStress(t *testing.T) {
	g := NewGroup(Options{Log: slog.New(slog.DiscardHandler), Keep: time.Millisecond})
	var wg sync.WaitGroup
	for i := range 400 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%7)*time.Millisecond)
			defer cancel()
			key := fmt.Sprint("k", i%10)
			got, err := Do(ctx, g, key, time.Second, func(ctx context.Context, op *Op) (string, error) {
				op.Stage("one")
				time.Sleep(time.Duration(i%3) * time.Millisecond)
				return key, nil
			})
			if (err != nil || got != key) && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
	wg.Wait()
	if err := g.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
}
