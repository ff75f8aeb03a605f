package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// TestCrashBeforeAnExecIsTold kills cri-monitor as soon as a session's program runs, mostly before its client has heard of it:
// the session ends all the same.
func TestCrashBeforeAnExecIsTold(t *testing.T) {
	l := newLoad(t)
	if err := l.Keep(t.Context(), l.cfg, slog.Default()); err != nil {
		t.Fatal(err)
	}
	req := l.request("c", "exec sleep 1000")
	req.Cgroup = l.cgroup("c", "pids")
	l.run(req)
	untold := 0
	for range rounds(t, "CRI_MONITOR_KILLS", 10) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		pid, killed := l.pid, make(chan error, 1)
		go func() {
			_, err := r.Read(make([]byte, 1))
			killed <- errors.Join(err, unix.Kill(pid, unix.SIGKILL))
		}()
		x, err := l.Exec(t.Context(), &monitor.ExecRequest{ID: "c", Process: l.process("echo; exec sleep 1000"), Stdout: w, Brief: true})
		w.Close()
		if err := <-killed; err != nil {
			t.Fatal(err)
		}
		if err != nil {
			untold++
		} else {
			ctx, cancel := context.WithTimeout(t.Context(), testns.Patience(20*time.Second))
			_, _ = x.Wait(ctx)
			cancel()
			_ = x.Close()
		}
		_ = r.SetReadDeadline(time.Now().Add(testns.Patience(5 * time.Second)))
		if _, err := io.ReadAll(r); err != nil {
			t.Errorf("the session lives on: %v", err)
		}
		r.Close()
		v, err := l.Version(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l.pid = v.Pid
	}
	t.Logf("%d untold", untold)
}
