package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// kill ends cri-monitor at once and waits until its client has the next one. It returns how long that took.
func (l *load) kill() time.Duration {
	l.t.Helper()
	began := time.Now()
	if err := unix.Kill(l.pid, unix.SIGKILL); err != nil {
		l.t.Fatal(err)
	}
	v, err := l.Version(l.t.Context())
	if err != nil || v.Pid == l.pid {
		l.t.Fatalf("after the death of %d: %+v, %v", l.pid, v, err)
	}
	l.pid = v.Pid
	return time.Since(began)
}

// TestCrash kills cri-monitor again and again while containers write, start, run sessions and end.
// CRI_MONITOR_KILLS says how often.
func TestCrash(t *testing.T) {
	l := newLoad(t)
	if err := l.Keep(t.Context(), l.cfg, slog.Default()); err != nil {
		t.Fatal(err)
	}
	r := l.writer()
	talker := l.request("talker", "exec cat")
	talker.Stdin = true
	l.run(talker)
	tty := l.request("tty", "exec cat")
	tty.Spec.Process.Terminal, tty.Stdin = true, true
	l.run(tty)
	if _, err := l.Create(t.Context(), l.request("created", "echo begins; exit 3")); err != nil {
		t.Fatal(err)
	}
	longest := time.Duration(0)
	n := rounds(t, "CRI_MONITOR_KILLS", 10)
	for i := range n {
		longest = max(longest, l.oneCrash(i))
		for _, id := range []string{"talker", "tty"} {
			a, k := l.attach(id)
			k.line()
			if err := a.Close(); err != nil {
				t.Error(err)
			}
			k.in.Close()
		}
		l.rotate(r, i)
	}
	t.Logf("%d kills, longest swap %v, %d MB of log so far", n, longest, r.bytes>>20)
	if _, err := l.Start(t.Context(), "created"); err != nil {
		t.Error(err)
	}
	if st := l.stopped("created"); st.ExitCode != 3 {
		t.Errorf("%+v", st)
	}
	l.finish(r)
}

// oneCrash kills while a container ends, a session runs, and another container is taken through its life.
func (l *load) oneCrash(i int) time.Duration {
	t := l.t
	t.Helper()
	id := fmt.Sprintf("dies%d", i)
	pause := fmt.Sprintf("sleep 0.%03d", i*7%80)
	l.run(l.request(id, fmt.Sprintf("echo begins; %s; echo ends; exit %d", pause, i%256)))
	x, k := l.exec("talker")
	k.line()
	lived := make(chan error, 1)
	go func() { lived <- l.life(fmt.Sprintf("life%d", i)) }()
	time.Sleep(time.Duration(i%17) * time.Millisecond)
	took := l.kill()
	if code, err := x.Wait(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("session over a crash: %d, %v", code, err)
	}
	x.Close()
	k.in.Close()
	if st := l.stopped(id); st.ExitCode != i%256 || st.ExitUnknown {
		t.Errorf("%s: %+v", id, st)
	}
	b, _ := os.ReadFile(filepath.Join(l.dir, id+".log"))
	if got := texts(b); got != "begins\nends\n" {
		t.Errorf("log of %s: %q", id, b)
	}
	if err := l.Delete(t.Context(), id); err != nil {
		t.Error(err)
	}
	if err := <-lived; err != nil {
		t.Error(err)
	}
	return took
}

// life takes a container from create to delete. Only a start that the crash has cut short may fail, and says so.
func (l *load) life(id string) error {
	ctx, cancel := context.WithTimeout(l.t.Context(), 30*time.Second)
	defer cancel()
	if _, err := l.Create(ctx, l.request(id, "echo here; exit 6")); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	_, started := l.Start(ctx, id)
	if started != nil && !errdefs.IsUnavailable(started) {
		return fmt.Errorf("start: %w", started)
	}
	st, err := l.Wait(ctx, id)
	if err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	if started == nil && (st.ExitCode != 6 || st.ExitUnknown) {
		return fmt.Errorf("%s: %+v", id, st)
	}
	b, _ := os.ReadFile(filepath.Join(l.dir, id+".log"))
	if got := texts(b); started == nil && got != "here\n" {
		return fmt.Errorf("log of %s: %q", id, b)
	}
	if err := l.Delete(ctx, id); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	if _, err := l.State(ctx, id); !errdefs.IsNotFound(err) {
		return errors.Join(fmt.Errorf("%s is still there", id), err)
	}
	return nil
}

// TestCrashStates: what a container was before is what it is afterwards.
func TestCrashStates(t *testing.T) {
	l := newLoad(t)
	if err := l.Keep(t.Context(), l.cfg, slog.Default()); err != nil {
		t.Fatal(err)
	}
	states := map[string]monitor.State{}
	if _, err := l.Create(t.Context(), l.request("created", "exit 3")); err != nil {
		t.Fatal(err)
	}
	l.run(l.request("running", "sleep 1000"))
	l.run(l.request("stopped", "exit 4"))
	l.stopped("stopped")
	once := l.request("once", "cat; exit 8")
	once.Stdin, once.StdinOnce = true, true
	l.run(once)
	killed := l.run(l.request("killed", "sleep 1000"))
	list, err := l.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range list {
		states[st.ID] = st
	}
	if err := unix.Kill(l.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = unix.Kill(killed.Pid, unix.SIGTERM) // while nobody looks
	_ = unix.Kill(killed.Pid, unix.SIGKILL)
	v, err := l.Version(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l.pid = v.Pid
	if list, err = l.List(t.Context()); err != nil || len(list) != len(states) {
		t.Fatalf("%d of %d containers, %v", len(list), len(states), err)
	}
	for _, st := range list {
		if want := states[st.ID]; st.ID != "killed" && !same(st, want) {
			t.Errorf("%+v\nwas %+v", st, want)
		}
	}
	if st := l.stopped("killed"); st.ExitCode != 137 || st.Signal != 9 || st.ExitUnknown {
		t.Errorf("%+v", st)
	}
	// The first attachment that brings input still ends it, although others hold the pipe.
	a, k := l.attach("once")
	k.line()
	k.in.Close()
	if st := l.stopped("once"); st.ExitCode != 8 {
		t.Errorf("%+v", st)
	}
	a.Close()
	if err := l.Signal(t.Context(), "running", unix.SIGKILL); err != nil {
		t.Error(err)
	}
	if st := l.stopped("running"); st.ExitCode != 137 {
		t.Errorf("%+v", st)
	}
}

func same(a, b monitor.State) bool {
	return a.Status == b.Status && a.Pid == b.Pid && a.ExitCode == b.ExitCode && a.CreatedAt.Equal(b.CreatedAt) &&
		a.StartedAt.Equal(b.StartedAt) && a.FinishedAt.Equal(b.FinishedAt)
}

// texts joins the contents of a log's records.
func texts(log []byte) string {
	var out []byte
	for line := range bytes.Lines(log) {
		f := bytes.SplitN(line, []byte(" "), 4)
		if len(f) != 4 {
			return "broken record: " + string(line)
		}
		text := f[3]
		if f[2][0] == 'P' {
			text = bytes.TrimSuffix(text, []byte("\n"))
		}
		out = append(out, text...)
	}
	return string(out)
}
