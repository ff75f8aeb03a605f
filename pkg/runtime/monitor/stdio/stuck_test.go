package stdio

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/logs"
)

// A loop that does not come to it, because a write hangs, holds nobody up; when it gets on, all is done that was asked.
func TestStuck(t *testing.T) {
	was := answerTime
	answerTime = 20 * time.Millisecond
	t.Cleanup(func() { answerTime = was })
	l, err := newLoop(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	add := func(id string) (*Streams, int, error) {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		log, err := logs.Open(t.TempDir(), id+".log")
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.add(Config{ID: id, Stdin: -1, Stdout: p[0], Stderr: -1, Terminal: -1, Log: log})
		return s, p[1], err
	}
	s, in, err := add("first")
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(in)
	l.serving.Store(s)
	again := make(chan struct{})
	l.post(func() { <-again }) // as a write(2) that hangs
	for what, f := range map[string]func() error{
		"add":    func() error { _, w, err := add("second"); unix.Close(w); return err },
		"attach": func() error { _, err := s.Attach(-1, -1, -1); return err },
		"save":   func() error { _, _, err := s.Save(t.Context()); return err },
		"reopen": func() error { return s.ReopenLog(t.Context(), func() { t.Error("kept") }) },
		"resize": func() error { return s.Resize(t.Context(), 1, 1) },
		"pause":  func() error { _, err := l.Pause(); return err },
	} {
		if err := f(); !errdefs.IsUnavailable(err) || !errors.Is(err, errStuck) || !strings.Contains(err.Error(), filepath.Base(s.logPath)) {
			t.Errorf("%s: %v", what, err)
		}
	}
	s.Stop(t.Context(), 0)
	close(again)
	answerTime = was
	if err := l.call(context.Background(), func() error {
		if l.journal.next != 2 || len(l.journal.free) != 1 || len(s.attachments) != 0 || s.reopening {
			t.Errorf("%d slots, %v free, %d attachments, reopening %v", l.journal.next, l.journal.free, len(s.attachments), s.reopening)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	s.Close()
	l.Close()
}

// Whoever wanted a picture of a stuck loop's streams, again and again, and gave up, leaves no descriptors when it gets on.
func TestSaveGivenUp(t *testing.T) {
	was := answerTime
	answerTime = 20 * time.Millisecond
	t.Cleanup(func() { answerTime = was })
	g, err := New(slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	s, in := writer(t, g, "c", t.TempDir())
	defer in.Close()
	pipe, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(s.outs[0].fd))
	if err != nil {
		t.Fatal(err)
	}
	descriptors := func() (n int) {
		list, _ := filepath.Glob("/proc/self/fd/*")
		for _, l := range list {
			if to, _ := os.Readlink(l); to == pipe {
				n++
			}
		}
		return n
	}
	before := descriptors()
	again := make(chan struct{})
	s.l.serving.Store(s)
	s.l.post(func() { <-again }) // as a write(2) that hangs
	for range 10 {
		if _, _, err := s.Save(t.Context()); !errdefs.IsUnavailable(err) || !errors.Is(err, errStuck) {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := s.Save(ctx); err == nil {
		t.Error("saved")
	}
	s.l.mu.Lock()
	if n := len(s.l.calls); n > maxSaves+1 {
		t.Errorf("%d calls wait", n)
	}
	s.l.mu.Unlock()
	close(again)
	answerTime = was
	_, f, err := s.Save(t.Context())
	for errors.Is(err, errStuck) { // it has not come to those that were given up
		_, f, err = s.Save(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	closeAll(f.Stdout, f.Log)
	if n := descriptors(); n != before {
		t.Errorf("%d descriptors of its output, %d before", n, before)
	}
	s.Close()
}
