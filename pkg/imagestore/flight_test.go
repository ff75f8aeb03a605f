package imagestore

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestFlightThatDoesNotEnd: who leaves a run that can't end is told its stage; who comes meanwhile waits for its end, and begins
// anew after it.
func TestFlightThatDoesNotEnd(t *testing.T) {
	g := flights[int]{patience: time.Millisecond}
	var running sync.WaitGroup
	gate := make(chan struct{})
	runs := 0
	do := func(ctx context.Context) (int, error) {
		v, _, err := g.do(ctx, t.Context(), &running, "k", func(ctx context.Context) (int, error) {
			runs++
			stageOf(ctx).at("disk")
			if runs == 1 {
				<-ctx.Done()
				<-gate // as a system call that does not return
				return 0, ctx.Err()
			}
			return runs, nil
		})
		return v, err
	}
	for _, want := range []string{`still at stage "disk" after `, `the former try has not ended: still at stage "disk" after `} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, err := do(ctx)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	third := make(chan error, 1)
	go func() {
		v, err := do(t.Context())
		if v != 2 {
			t.Errorf("%d runs", v)
		}
		third <- err
	}()
	close(gate)
	if err := <-third; err != nil {
		t.Error(err)
	}
	running.Wait()
	if len(g.m) != 0 {
		t.Errorf("left over: %v", g.m)
	}
}

// TestFlightLeftByAll: without patience the last who leaves waits for the end, and gets no stage.
func TestFlightLeftByAll(t *testing.T) {
	var g flights[int]
	var running sync.WaitGroup
	ended := false
	ctx, cancel := context.WithCancel(t.Context())
	_, _, err := g.do(ctx, t.Context(), &running, "k", func(run context.Context) (int, error) {
		cancel()
		<-run.Done()
		ended = true
		return 0, run.Err()
	})
	if !ended || err != context.Canceled {
		t.Errorf("ended %v: %v", ended, err)
	}
}

func TestStage(t *testing.T) {
	var none *stage
	none.at("nowhere")
	none.layer(1, 1, "sha256:a").at("nothing")
	none.layer(1, 1, "sha256:a").fetching(1)
	none.layer(1, 1, "sha256:a").done()
	if none.String() != "" {
		t.Error(none)
	}
	s := &stage{}
	want := func(text string) {
		t.Helper()
		if s.String() != text {
			t.Errorf("%q, want %q", s, text)
		}
	}
	s.at("manifest")
	want("manifest")
	first, second := s.layer(1, 2, digest.Digest("sha256:a")), s.layer(2, 2, digest.Digest("sha256:b"))
	first.fetching(10)
	first.add(4, 10)
	second.at("sync")
	want("layer 1 of 2, sha256:a: fetch and unpack, 4 of 10 bytes (and 1 more)")
	first.done()
	first.done()
	want("layer 2 of 2, sha256:b: sync")
	second.done()
	want("manifest")
	s.at("sync")
	want("sync")
}
