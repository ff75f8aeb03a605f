package main

import (
	"context"
	"errors"
	"fmt"
	"os"
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
func startWatched(t *testing.T, limit time.Duration) (*node, questions) {
	t.Helper()
	t.Setenv("WATCHDOG_USEC", fmt.Sprint(limit.Microseconds()))
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	n, q := newNode(t), questions{make(chan struct{}, 100), make(chan error)}
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
	n, q := startWatched(t, time.Hour) // which is too long for a tick
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
	n, q := startWatched(t, 600*time.Millisecond)
	for range patience - 1 {
		if s := n.state(t); s != "WATCHDOG=1" {
			t.Error(s)
		}
	}
	n.log.await(t, "no answer from our own socket")
	if len(n.states) != 0 || len(q.asked) != 1 {
		t.Errorf("after %d questions without an answer systemd hears %s", len(q.asked), n.state(t))
	}
	q.answer <- nil
	if s := n.state(t); s != "WATCHDOG=1" {
		t.Error(s)
	}
	n.stop() // maybe in the middle of a question
	for s := n.state(t); s != "STOPPING=1"; s = n.state(t) {
		if s != "WATCHDOG=1" {
			t.Error(s)
		}
	}
}

func TestWatchdogIsNotFedWithErrors(t *testing.T) {
	n, q := startWatched(t, time.Hour)
	q.answer <- errors.New("out of order")
	n.log.await(t, "out of order")
	n.stop()
	for s := n.state(t); s != "STOPPING=1"; s = n.state(t) {
		t.Error(s)
	}
}
