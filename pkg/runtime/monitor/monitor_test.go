package monitor

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

// theReaper owns wait(2) in this test process; not in the one around it, which waits for this one.
var theReaper = sync.OnceValue(reaper.New)

func TestMain(m *testing.M) { testns.Main(m) }

// node is a Server in this process with a client.
type node struct {
	*Client
	t      testing.TB
	s      *Server
	dir    string
	socket string
}

func newNode(t testing.TB) *node {
	t.Helper()
	return newNodeWith(t, func(*OCIRuntime) (engine.Engine, error) { return forkEngine{theReaper()}, nil })
}

func newNodeWith(t testing.TB, eng func(*OCIRuntime) (engine.Engine, error)) *node {
	t.Helper()
	testns.Root(t)
	dir := t.TempDir()
	n := &node{t: t, dir: dir, socket: filepath.Join(dir, "s")}
	s, err := NewServer(ServerConfig{
		Socket: n.socket, StateDir: filepath.Join(dir, "state"), Build: "test",
		Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)), Engine: eng,
	})
	if err != nil {
		t.Fatal(err)
	}
	n.s = s
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	if n.Client, err = Dial(t.Context(), n.socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testns.Patience(30*time.Second))
		defer cancel()
		list, err := n.List(ctx)
		if err != nil {
			t.Error(err)
		}
		for _, st := range list {
			if err := n.Delete(ctx, st.ID); err != nil {
				t.Errorf("delete %s: %v", st.ID, err)
			}
		}
		if err := n.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		n.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return n
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// request describes a container that runs a busybox shell script.
func (n *node) request(id, script string) *CreateRequest {
	return &CreateRequest{
		ID: id,
		Spec: &specs.Spec{
			Process: &specs.Process{Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin"}},
			Linux:   &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}}},
		},
		LogDir: n.dir, LogPath: id + ".log",
	}
}

func (n *node) run(req *CreateRequest) State {
	n.t.Helper()
	if _, err := n.Create(n.t.Context(), req); err != nil {
		n.t.Fatal(err)
	}
	st, err := n.Start(n.t.Context(), req.ID)
	if err != nil {
		n.t.Fatal(err)
	}
	return st
}

func (n *node) stopped(id string) State {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), testns.Patience(20*time.Second))
	defer cancel()
	st, err := n.Wait(ctx, id)
	if err != nil {
		n.t.Fatal(err)
	}
	return st
}

// output joins the log's records per stream, as kubelet does.
func (n *node) output(id string) (stdout, stderr string) {
	n.t.Helper()
	b, err := os.ReadFile(filepath.Join(n.dir, id+".log"))
	if err != nil {
		n.t.Fatal(err)
	}
	return splitLog(n.t, b)
}

func splitLog(t testing.TB, b []byte) (stdout, stderr string) {
	t.Helper()
	var out [2]strings.Builder
	for line := range bytes.Lines(b) {
		f := bytes.SplitN(bytes.TrimSuffix(line, []byte("\n")), []byte(" "), 4)
		if len(f) != 4 || line[len(line)-1] != '\n' {
			t.Fatalf("bad record %.100q", line)
		}
		if _, err := time.Parse(time.RFC3339Nano, string(f[0])); err != nil {
			t.Fatal(err)
		}
		i := map[string]int{"stdout": 0, "stderr": 1}[string(f[1])]
		out[i].Write(f[3])
		if string(f[2]) == "F" {
			out[i].WriteByte('\n')
		}
	}
	return out[0].String(), out[1].String()
}

func TestLife(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	req := n.request("c1", `echo out; echo err >&2; printf tail; exit 3`)
	st, err := n.Create(ctx, req)
	if err != nil || st.Status != Created || st.Pid == 0 || st.CreatedAt.IsZero() {
		t.Fatalf("create: %+v %v", st, err)
	}
	if _, err := n.Create(ctx, req); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create: %v", err)
	}
	if st, err = n.Start(ctx, "c1"); err != nil || st.Status != Running {
		t.Fatalf("start: %+v %v", st, err)
	}
	if _, err = n.Start(ctx, "c1"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v", err)
	}
	if st = n.stopped("c1"); st.ExitCode != 3 || st.Status != Stopped || st.Pid != 0 || st.FinishedAt.Before(st.StartedAt) {
		t.Errorf("stopped: %+v", st)
	}
	if out, err := n.output("c1"); out != "out\ntail" || err != "err\n" {
		t.Errorf("log: %q %q", out, err)
	}
	if err := n.Signal(ctx, "c1", unix.SIGTERM); !errdefs.IsNotFound(err) {
		t.Errorf("signal after the end: %v", err)
	}
	if err := n.Shutdown(ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("shutdown with a container: %v", err)
	}
	for range 2 {
		if err := n.Delete(ctx, "c1"); err != nil {
			t.Error(err)
		}
	}
	if _, err := n.State(ctx, "c1"); !errdefs.IsNotFound(err) {
		t.Errorf("state after delete: %v", err)
	}
}

func TestKillAndStartError(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	n.run(n.request("k", `sleep 1000 & sleep 1000`))
	if err := n.Kill(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	if st := n.stopped("k"); st.ExitCode != 137 || st.Signal != 9 {
		t.Errorf("killed: %+v", st)
	}
	req := n.request("m", "")
	req.Spec.Process.Args = []string{"/missing"}
	if _, err := n.Create(ctx, req); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Start(ctx, "m"); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "/missing") {
		t.Errorf("start of a missing program: %v", err)
	}
	if st := n.stopped("m"); st.ExitCode != startErrorCode || st.StartError == "" {
		t.Errorf("state: %+v", st)
	}
	n.run(n.request("alive", `sleep 1000`))
	if err := n.Delete(ctx, "alive"); err != nil {
		t.Errorf("delete of a running container: %v", err)
	}
}

func TestExec(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	n.run(n.request("c", `sleep 1000`))
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	x, err := n.Exec(ctx, &ExecRequest{ID: "c", Process: &specs.Process{Args: []string{"sh", "-c", "echo hi; exit 7"}}, Stdout: w})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	out, _ := io.ReadAll(r)
	code, err := x.Wait(ctx)
	if code != 7 || err != nil || string(out) != "hi\n" {
		t.Errorf("exec: %d %v %q", code, err, out)
	}
	if _, err := n.Exec(ctx, &ExecRequest{ID: "none", Process: &specs.Process{Args: []string{"true"}}}); !errdefs.IsNotFound(err) {
		t.Errorf("exec in no container: %v", err)
	}
	if _, err := n.Exec(ctx, &ExecRequest{ID: "c", Process: &specs.Process{}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("exec of nothing: %v", err)
	}
	x, err = n.Exec(ctx, &ExecRequest{ID: "c", Process: &specs.Process{Args: []string{"sleep", "1000"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Kill(); err != nil {
		t.Error(err)
	}
	if code, err := x.Wait(ctx); code != 137 || err != nil {
		t.Errorf("killed exec: %d %v", code, err)
	}
	x.Close()
	if x, err = n.Exec(ctx, &ExecRequest{ID: "c", Process: &specs.Process{Args: []string{"sleep", "1000"}}}); err != nil {
		t.Fatal(err)
	}
	x.Close()
	eventually(t, "the exec's process ends with its connection", func() bool {
		return unix.Kill(x.Pid, 0) == unix.ESRCH
	})
}

// eventually polls for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testns.Patience(15 * time.Second)); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func TestEvents(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	n.run(n.request("old", `sleep 1000`))
	ev, err := n.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer ev.Close()
	few, err := n.Events(ctx, "created", "deleted")
	if err != nil {
		t.Fatal(err)
	}
	defer few.Close()
	n.run(n.request("new", `exit 1`))
	n.stopped("new")
	if err := n.Delete(ctx, "new"); err != nil {
		t.Fatal(err)
	}
	var got []string
	last := uint64(0)
	for i := range 5 {
		e, err := ev.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 && e.Seq != last+1 {
			t.Errorf("seq %d after %d", e.Seq, last)
		}
		last = e.Seq
		got = append(got, fmt.Sprintf("%s:%s:%s", e.State.ID, e.Type, e.State.Status))
	}
	want := "old:started:running new:created:created new:started:running new:stopped:stopped new:deleted:stopped"
	if strings.Join(got, " ") != want || ev.Known != 1 {
		t.Errorf("got %v, known %d", got, ev.Known)
	}
	for _, want := range []string{"old:started", "new:started", "new:stopped"} {
		e, err := few.Next(ctx)
		if got := e.State.ID + ":" + e.Type; err != nil || got != want {
			t.Errorf("got %s, want %s, %v", got, want, err)
		}
	}
}
