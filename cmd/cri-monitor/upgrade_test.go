package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// rounds is how often a test repeats what it does: n, or what an environment variable says for a long run by hand.
func rounds(t *testing.T, env string, n int) int {
	t.Helper()
	if s := os.Getenv(env); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// load is what goes on while cri-monitor is replaced or killed.
type load struct {
	*node
	t     *testing.T
	logs  string
	lines int // of 100 bytes in /data
}

const dataLines = 100_000

func newLoad(t *testing.T) *load {
	l := &load{node: newNode(t), t: t, lines: dataLines}
	dir, err := os.MkdirTemp("/run", "logs") // a tmpfs: this is not about a disk
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l.logs = dir
	var data bytes.Buffer
	for i := range l.lines {
		fmt.Fprintf(&data, "%08d%91s\n", i, "")
	}
	if err := os.WriteFile(filepath.Join(l.layer, "data"), data.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return l
}

// writer starts a container that writes /data again and again until finish. It returns a reader of its rotated logs.
func (l *load) writer() *exactReader {
	req := l.request("writer", "until [ -e /stop ]; do [ -e /wait ] || cat /data || exit 9; sleep 0.12; done; exit 5")
	req.LogDir = l.logs
	l.run(req)
	return &exactReader{t: l.t, round: l.lines}
}

// muchLog is how much there may be to check while the writer goes on. On a busy machine, or with the race detector, it takes
// longer to check than to write, and each round has more than the one before, until the memory is full.
const muchLog = 256 << 20

// rotate moves the log away and checks it.
func (l *load) rotate(r *exactReader, i int) {
	l.t.Helper()
	old := filepath.Join(l.logs, fmt.Sprintf("old%d", i))
	if err := os.Rename(filepath.Join(l.logs, "writer.log"), old); err != nil {
		l.t.Fatal(err)
	}
	if err := l.ReopenLog(l.t.Context(), "writer"); err != nil {
		l.t.Fatal(err)
	}
	if st, err := os.Stat(old); err != nil || st.Size() > muchLog {
		wait := filepath.Join(l.layer, "wait")
		if err := errors.Join(err, os.WriteFile(wait, nil, 0o644)); err != nil {
			l.t.Fatal(err)
		}
		defer os.Remove(wait)
	}
	r.file(old)
}

func (l *load) finish(r *exactReader) {
	l.t.Helper()
	if err := os.WriteFile(filepath.Join(l.layer, "stop"), nil, 0o644); err != nil {
		l.t.Fatal(err)
	}
	if st := l.stopped("writer"); st.ExitCode != 5 {
		l.t.Errorf("writer: %+v", st)
	}
	r.file(filepath.Join(l.logs, "writer.log"))
	if r.bytes == 0 || r.bytes%(l.lines*100) != 0 {
		l.t.Errorf("%d bytes, no multiple of %d", r.bytes, l.lines*100)
	}
}

// talk is a program that answers each line with itself.
type talk struct {
	t   *testing.T
	who string
	in  *os.File
	out *bufio.Reader
	n   int
}

func (k *talk) line() {
	k.t.Helper()
	k.n++
	want := fmt.Sprintf("line %d\n", k.n)
	if _, err := io.WriteString(k.in, want); err != nil {
		k.t.Fatalf("%s: %v", k.who, err)
	}
	for {
		got, err := k.out.ReadString('\n')
		if err != nil {
			k.t.Fatalf("%s: %q: %v", k.who, got, err)
		}
		if strings.TrimRight(got, "\r\n") == strings.TrimSpace(want) {
			return
		}
	}
}

func (l *load) process(script string) *specs.Process {
	return &specs.Process{Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"}}
}

// exec starts a session that talks.
func (l *load) exec(id string) (*monitor.Exec, *talk) {
	l.t.Helper()
	inR, inW, _ := os.Pipe()
	outR, outW, _ := os.Pipe()
	inR.Fd() // makes it blocking, as programs expect it
	outW.Fd()
	x, err := l.Exec(l.t.Context(), &monitor.ExecRequest{ID: id, Process: l.process("cat"), Stdin: inR, Stdout: outW})
	if err != nil {
		l.t.Fatal(err)
	}
	inR.Close()
	outW.Close()
	return x, &talk{t: l.t, who: "session of " + id, in: inW, out: bufio.NewReader(outR)}
}

// attach connects to a container that talks.
func (l *load) attach(id string) (*monitor.Attachment, *talk) {
	l.t.Helper()
	inR, inW, _ := os.Pipe()
	outR, outW, _ := os.Pipe()
	a, err := l.Attach(l.t.Context(), &monitor.AttachRequest{ID: id, Stdin: inR, Stdout: outW})
	if err != nil {
		l.t.Fatal(err)
	}
	inR.Close()
	outW.Close()
	return a, &talk{t: l.t, who: "attachment to " + id, in: inW, out: bufio.NewReader(outR)}
}

// TestUpgrade replaces the program again and again while everything goes on. CRI_MONITOR_UPGRADES says how often.
func TestUpgrade(t *testing.T) {
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
	if _, err := l.Create(t.Context(), l.request("created", "exit 3")); err != nil {
		t.Fatal(err)
	}
	x, echo := l.exec("talker")
	a, attached := l.attach("talker")
	b, terminal := l.attach("tty")
	events, err := l.Events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	waited := make(chan monitor.State, 1)
	go func() { waited <- l.stopped("created") }()

	n := rounds(t, "CRI_MONITOR_UPGRADES", 20)
	began := time.Now()
	for i := range n {
		l.oneUpgrade(i)
		for _, k := range []*talk{echo, attached, terminal} {
			k.line()
		}
		l.rotate(r, i)
	}
	t.Logf("%d upgrades in %v, %d MB of log so far", n, time.Since(began), r.bytes>>20)
	if v, err := l.Version(t.Context()); err != nil || v.Pid != l.pid {
		t.Errorf("another process: %+v, %v", v, err)
	}
	if _, err := l.Start(t.Context(), "created"); err != nil {
		t.Error(err)
	}
	if st := <-waited; st.ExitCode != 3 {
		t.Errorf("%+v", st)
	}
	echo.in.Close()
	if code, err := x.Wait(t.Context()); code != 0 || err != nil {
		t.Errorf("session: %d, %v", code, err)
	}
	l.finish(r)
	for _, a := range []*monitor.Attachment{a, b} {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
	l.countEvents(events, n)
	l.stalls()
}

// oneUpgrade has a container and a session end at about the time of the upgrade.
func (l *load) oneUpgrade(i int) {
	l.t.Helper()
	id := fmt.Sprintf("dies%d", i)
	pause := fmt.Sprintf("sleep 0.%03d", i*7%80)
	l.run(l.request(id, fmt.Sprintf("%s; exit %d", pause, i%256)))
	x, err := l.Exec(l.t.Context(), &monitor.ExecRequest{ID: "talker", Process: l.process(pause + "; exit 7")})
	if err != nil {
		l.t.Fatal(err)
	}
	defer x.Close()
	if _, err := l.Upgrade(l.t.Context(), l.cfg.Path); err != nil {
		l.t.Fatal(err)
	}
	if code, err := x.Wait(l.t.Context()); code != 7 || err != nil {
		l.t.Errorf("session: %d, %v", code, err)
	}
	if st := l.stopped(id); st.ExitCode != i%256 || st.ExitUnknown {
		l.t.Errorf("%s: %+v", id, st)
	}
	if err := l.Delete(l.t.Context(), id); err != nil {
		l.t.Error(err)
	}
}

// countEvents expects created, started, stopped and deleted of each container that oneUpgrade made, without a gap.
func (l *load) countEvents(events *monitor.Events, n int) {
	l.t.Helper()
	count := map[string]int{}
	last := uint64(0)
	for i := 0; count["deleted"] < n; i++ {
		ctx, cancel := context.WithTimeout(l.t.Context(), 20*time.Second)
		e, err := events.Next(ctx)
		cancel()
		if err != nil {
			l.t.Fatalf("after %v: %v", count, err)
		}
		if i >= events.Known {
			if last != 0 && e.Seq != last+1 {
				l.t.Fatalf("event %d after %d", e.Seq, last)
			}
			if strings.HasPrefix(e.State.ID, "dies") {
				count[e.Type]++
			}
		}
		last = e.Seq
	}
	for _, what := range []string{"created", "started", "stopped", "deleted"} {
		if count[what] != n {
			l.t.Errorf("%d containers, events: %v", n, count)
		}
	}
}

// stalls reports how long containers had no reader.
func (l *load) stalls() {
	l.t.Helper()
	b, _ := os.ReadFile(l.cfg.LogFile)
	var longest time.Duration
	for line := range strings.Lines(string(b)) {
		if _, took, ok := strings.Cut(line, "took="); ok && strings.Contains(line, "msg=upgraded") {
			d, _ := time.ParseDuration(strings.TrimSpace(took))
			longest = max(longest, d)
		}
	}
	l.t.Logf("longest upgrade: %v", longest)
}

// TestUpgradeOfCreated: a container that waits for its start does so in the next program.
func TestUpgradeOfCreated(t *testing.T) {
	n := newNode(t)
	req := n.request("waits", "exit 9")
	if _, err := n.Create(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if v, err := n.Upgrade(ctx, n.cfg.Path); err != nil || v.Pid != n.pid {
		t.Fatalf("%+v, %v", v, err)
	}
	if _, err := n.Start(ctx, "waits"); err != nil {
		t.Fatal(err)
	}
	if st := n.stopped("waits"); st.ExitCode != 9 || st.ExitUnknown {
		t.Errorf("%+v", st)
	}
	if err := n.Delete(ctx, "waits"); err != nil {
		t.Error(err)
	}
}

// TestUpgradeRefused: whatever is wrong with the new program, the old one goes on.
func TestUpgradeRefused(t *testing.T) {
	n := newNode(t)
	n.run(n.request("c", "sleep 1000"))
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(n.dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, path := range map[string]string{
		"missing": filepath.Join(n.dir, "nothing"), "no program": file("text", "hello", 0o644),
		"garbage": file("garbage", "hello", 0o755), "directory": n.dir, "another program": "/bin/busybox",
	} {
		if v, err := n.Upgrade(t.Context(), path); err == nil {
			t.Errorf("%s: %+v", name, v)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if st, err := n.State(ctx, "c"); err != nil || st.Status != monitor.Running {
		t.Errorf("%+v, %v", st, err)
	}
	if v, err := n.Version(ctx); err != nil || v.Pid != n.pid {
		t.Errorf("%+v, %v", v, err)
	}
	newer := exec.CommandContext(ctx, n.cfg.Path, "--check-state")
	newer.Stdin = strings.NewReader(`{"version":999,"build":"later"}`)
	if out, err := newer.CombinedOutput(); err == nil || !strings.Contains(string(out), "version 999") {
		t.Errorf("a state of the future: %v, %s", err, out)
	}
	if err := n.Signal(ctx, "c", unix.SIGTERM); err != nil && !errdefs.IsNotFound(err) {
		t.Error(err)
	}
}
