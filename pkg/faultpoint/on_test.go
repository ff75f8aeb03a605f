//go:build faultpoints

package faultpoint

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func arm(t *testing.T, p *plan, rules ...Rule) {
	t.Helper()
	if err := Arm(p.dir, filepath.Base(p.name), rules...); err != nil {
		t.Fatal(err)
	}
}

func TestCounts(t *testing.T) {
	p := open(t.TempDir(), "p")
	if err := p.hit("a.b"); err != nil {
		t.Error("without a plan:", err)
	}
	arm(t, p, Rule{Point: "a.*", N: 2, Action: "ENOSPC"}, Rule{Point: "c.d", N: 2, Onward: true, Action: "EIO"})
	var got []error
	for _, point := range []string{"a.b", "c.d", "a.c", "c.d", "a.b", "c.d"} {
		got = append(got, p.hit(point))
	}
	for i, want := range []error{nil, nil, unix.ENOSPC, unix.EIO, nil, unix.EIO} {
		if !errors.Is(got[i], want) || want == nil && got[i] != nil {
			t.Errorf("hit %d: %v, want %v", i, got[i], want)
		}
	}
	if b, _ := os.ReadFile(p.name + ".plan"); string(b) != "c.d 2+ EIO\n" {
		t.Errorf("left of the plan: %q", b)
	}
	hits, err := Hits(p.dir, "p")
	if want := []string{"a.b", "a.b", "c.d", "a.c", "c.d", "a.b", "c.d"}; err != nil || !slices.Equal(hits, want) {
		t.Error(hits, err)
	}
	fired, err := Fired(p.dir, "p")
	if want := []string{"a.c a.* 2 ENOSPC", "c.d c.d 2+ EIO", "c.d c.d 2+ EIO"}; err != nil || !slices.Equal(fired, want) {
		t.Error(fired, err)
	}
	// The same rule again counts from the beginning; one that stays goes on.
	arm(t, p, Rule{Point: "c.d", N: 2, Onward: true, Action: "EIO"}, Rule{Point: "a.*", N: 2, Action: "EMFILE"})
	if err := p.hit("c.d"); !errors.Is(err, unix.EIO) {
		t.Error(err)
	}
	if err := p.hit("a.b"); err != nil {
		t.Error(err)
	}
	arm(t, p)
	if err := p.hit("c.d"); err != nil {
		t.Error(err)
	}
}

func TestBlock(t *testing.T) {
	p := open(t.TempDir(), "p")
	arm(t, p, Rule{Point: "a.b", N: 1, Action: Block}, Rule{Point: "c.d", N: 1, Action: "delay:1ms"})
	done := make(chan error)
	go func() { done <- p.hit("a.b") }()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if fired, _ := Fired(p.dir, "p"); len(fired) == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it has not fired")
		}
	}
	if err := p.hit("c.d"); err != nil { // others are not held up
		t.Error(err)
	}
	select {
	case <-done:
		t.Fatal("it did not wait")
	default:
	}
	arm(t, p)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestPanic(t *testing.T) {
	p := open(t.TempDir(), "p")
	arm(t, p, Rule{Point: "a.b", N: 1, Action: Panic})
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
		if err := p.hit("a.b"); err != nil { // it can be passed again
			t.Error(err)
		}
	}()
	_ = p.hit("a.b")
}

func TestNoVariable(t *testing.T) {
	if open("", "p") != nil {
		t.Error("a plan without a directory")
	}
}
