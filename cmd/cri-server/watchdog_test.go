package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// state is the next that systemd hears.
func (n *node) state(t *testing.T) string {
	t.Helper()
	select {
	case s := <-n.states:
		return s
	case <-time.After(30 * time.Second):
		t.Fatalf("systemd hears nothing; the log:\n%s", n.log)
		return ""
	}
}

// questions are what the watchdog asks; each is answered when the test says with what.
type questions struct {
	asked  chan struct{}
	answer chan error
}

// startWatched runs a daemon that is ended when it doesn't feed its watchdog within limit.
func startWatched(t *testing.T, limit time.Duration, delayed func() time.Duration) (*node, questions) {
	t.Helper()
	t.Setenv("WATCHDOG_USEC", fmt.Sprint(limit.Microseconds()))
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	n, q := newNode(t), questions{make(chan struct{}, 100), make(chan error)}
	n.delayed = delayed
	n.version = func(ctx context.Context) error {
		q.asked <- struct{}{}
		select {
		case err := <-q.answer:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := n.start(t); err != nil {
		t.Fatal(err)
	}
	return n, q
}

func TestWatchdogAsksTheSocket(t *testing.T) {
	n, q := startWatched(t, time.Hour, nil) // which is too long for a tick
	q.answer <- nil
	if s := n.state(t); s != "WATCHDOG=1" {
		t.Error(s)
	}
	n.stop()
	if s := n.state(t); s != "STOPPING=1" {
		t.Error(s)
	}
}

// A server that is only slow is fed while it is asked, but not for ever, and again from its answer on.
func TestWatchdogIsPatient(t *testing.T) {
	n, q := startWatched(t, 600*time.Millisecond, func() time.Duration { return 0 })
	for range patience - 1 {
		if s := n.state(t); s != "WATCHDOG=1" {
			t.Error(s)
		}
	}
	// On a busy machine some more, for ticks that are late.
	n.log.await(t, "no answer from our own socket")
	for len(n.states) > 0 {
		<-n.states
	}
	if len(q.asked) != 1 {
		t.Errorf("%d questions at a time", len(q.asked))
	}
	q.answer <- nil
	if s := n.state(t); s != "WATCHDOG=1" {
		t.Error(s)
	}
	n.stop() // maybe in the middle of a question
	n.untilStopping(t)
}

// One that isn't let run is fed for as long as that lasts.
func TestWatchdogOfAStarvedServer(t *testing.T) {
	var sum atomic.Int64
	n, q := startWatched(t, 60*time.Millisecond, func() time.Duration { return time.Duration(sum.Add(int64(time.Millisecond))) })
	for range 3 * patience {
		if s := n.state(t); s != "WATCHDOG=1" {
			t.Error(s)
		}
	}
	if text := n.log.String(); strings.Contains(text, "no answer") || len(q.asked) != 1 {
		t.Errorf("%d questions; %s", len(q.asked), text)
	}
	n.stop()
	n.untilStopping(t)
}

// untilStopping: until then the watchdog may be fed.
func (n *node) untilStopping(t *testing.T) {
	t.Helper()
	for s := n.state(t); s != "STOPPING=1"; s = n.state(t) {
		if s != "WATCHDOG=1" {
			t.Error(s)
		}
	}
}

func TestRunDelay(t *testing.T) {
	b, _ := os.ReadFile("/proc/self/schedstat") // of the first thread; not there on a kernel without CONFIG_SCHED_INFO
	least := time.Duration(0)
	if f := strings.Fields(string(b)); len(f) == 3 && f[1] != "0" {
		least = 1
	}
	if got := runDelay(); got < least {
		t.Errorf("%v, and the first thread alone has %q", got, b)
	}
}

func TestWatchdogIsNotFedWithErrors(t *testing.T) {
	n, q := startWatched(t, time.Hour, nil)
	q.answer <- errors.New("out of order")
	n.log.await(t, "out of order")
	n.stop()
	for s := n.state(t); s != "STOPPING=1"; s = n.state(t) {
		t.Error(s)
	}
}
