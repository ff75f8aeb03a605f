package monitor

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// into is a request for a container whose cgroup finish makes.
func (n *node) into(id string, finish func(context.Context) error) *CreateRequest {
	req := n.request(id, "sleep 1000")
	req.Cgroup, req.FinishCgroup = &engine.Cgroup{}, finish
	return req
}

// nothingOf fails when cri-monitor has anything of a container.
func (n *node) nothingOf(id string) {
	n.t.Helper()
	if st, err := n.State(n.t.Context(), id); !errdefs.IsNotFound(err) {
		n.t.Errorf("a container is left: %+v, %v", st, err)
	}
	for _, c := range n.s.connections() {
		if c.task != nil {
			n.t.Error("a connection is busy")
		}
	}
}

// createSoon creates c as soon as its id is free again.
func (n *node) createSoon() {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), testns.Patience(20*time.Second))
	defer cancel()
	for {
		_, err := n.Create(ctx, n.into("c", func(context.Context) error { return nil }))
		if err == nil {
			return
		}
		if !errdefs.IsAlreadyExists(err) {
			n.t.Fatal(err)
		}
	}
}

// TestCreateInto: the cgroup is made while cri-monitor is at work, and there before the container is.
func TestCreateInto(t *testing.T) {
	n := newNode(t)
	calls := 0
	st, err := n.Create(t.Context(), n.into("c", func(context.Context) error {
		calls++
		if _, err := n.State(t.Context(), "c"); !errdefs.IsNotFound(err) {
			t.Errorf("the container is there before its cgroup: %v", err)
		}
		for begun := false; !begun; { // it does not wait for the cgroup to begin
			n.s.mu.Lock()
			begun = n.s.containers["c"] != nil
			n.s.mu.Unlock()
		}
		return nil
	}))
	if err != nil || st.Status != Created || calls != 1 {
		t.Fatalf("%+v, %v, %d calls", st, err, calls)
	}
	if _, err := n.Start(t.Context(), "c"); err != nil {
		t.Error(err)
	}
}

// TestCreateIntoFails: nothing is left where the cgroup was not made, and its maker's error is the call's.
func TestCreateIntoFails(t *testing.T) {
	n := newNode(t)
	boom := errors.New("no room for a cgroup")
	for range 3 { // on one connection
		if _, err := n.Create(t.Context(), n.into("c", func(context.Context) error { return boom })); !errors.Is(err, boom) {
			t.Errorf("create: %v", err)
		}
		n.nothingOf("c")
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := n.Create(ctx, n.into("c", func(ctx context.Context) error {
		cancel(boom)
		<-ctx.Done()
		return ctx.Err()
	}))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a create that was given up: %v", err)
	}
	req := n.into("c", func(context.Context) error { return nil })
	req.Spec.Process.Args = nil
	if _, err := n.Create(t.Context(), req); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a bad request: %v", err)
	}
	n.createSoon()
}

// TestCreateIntoLeaves: cri-server dies before the cgroup is there.
func TestCreateIntoLeaves(t *testing.T) {
	n := newNode(t)
	client, err := Dial(t.Context(), n.socket)
	if err != nil {
		t.Fatal(err)
	}
	uc, err := client.get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	theirs, ours, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFrame(uc, kindCreateInto, 1, n.into("c", nil), theirs); err != nil {
		t.Fatal(err)
	}
	for _, c := range []interface{ Close() error }{theirs, ours, uc} {
		c.Close()
	}
	n.createSoon()
}

// TestCreateIntoRefuses: what a client may get wrong.
func TestCreateIntoRefuses(t *testing.T) {
	n := newNode(t)
	file, err := os.Create(filepath.Join(n.dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	pipe := func(content string) *os.File {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = w.WriteString(content)
		w.Close()
		return r
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	blocking, end := os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w") // nobody writes or closes it
	defer end.Close()
	for _, tt := range []struct {
		name  string
		files []*os.File
		edit  func(*CreateRequest)
		want  func(error) bool
	}{
		{"no pipe", nil, nil, errdefs.IsInvalidArgument},
		{"two pipes", []*os.File{pipe("\x01"), pipe("\x01")}, nil, errdefs.IsInvalidArgument},
		{"a file", []*os.File{file}, nil, errdefs.IsInvalidArgument},
		{"a pipe that blocks", []*os.File{blocking}, nil, errdefs.IsInvalidArgument},
		{"another byte", []*os.File{pipe("x")}, nil, errdefs.IsInvalidArgument},
		{"no byte", []*os.File{pipe("")}, nil, errdefs.IsAborted},
		{"no cgroup", []*os.File{pipe("\x01")}, func(r *CreateRequest) { r.Cgroup = nil }, errdefs.IsInvalidArgument},
		{"an OCI runtime", []*os.File{pipe("\x01")}, func(r *CreateRequest) { r.OCI = &OCIRuntime{} }, errdefs.IsInvalidArgument},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req := n.into("c", nil)
			if tt.edit != nil {
				tt.edit(req)
			}
			uc, err := n.get(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer n.put(uc)
			if err := roundTrip(t.Context(), uc, kindCreateInto, req, nil, tt.files...); !tt.want(err) {
				t.Errorf("%v", err)
			}
			n.nothingOf("c")
			for _, f := range tt.files {
				f.Close()
			}
		})
	}
}

// TestCreateIntoOlder: a cri-monitor that does not know the kind gets the container when the cgroup is there.
func TestCreateIntoOlder(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	finished := false
	var kinds []kind
	served := make(chan error, 1)
	go func() { served <- older(ln, func(k kind) { kinds = append(kinds, k) }, &finished) }()
	client, err := Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t}
	st, err := client.Create(t.Context(), n.into("c", func(context.Context) error { finished = true; return nil }))
	if err != nil || st.ID != "c" {
		t.Errorf("create: %+v, %v", st, err)
	}
	client.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	ln.Close()
	if len(kinds) != 3 || kinds[1] != kindCreateInto || kinds[2] != kindCreate {
		t.Errorf("kinds %v", kinds)
	}
}

// older answers as a cri-monitor does that knows kindCreate only.
func older(ln *net.UnixListener, got func(kind), finished *bool) error {
	uc, err := ln.AcceptUnix()
	if err != nil {
		return err
	}
	defer uc.Close()
	for {
		f, err := readFrame(uc, nil)
		if err != nil {
			return nil // the client has gone
		}
		f.closeFiles()
		got(f.kind)
		switch f.kind {
		case kindHello:
			err = writeFrame(uc, kindOK, f.id, hello{protocolMin, protocolMax})
		case kindCreate:
			if !*finished {
				return errors.New("the container came before its cgroup")
			}
			err = writeFrame(uc, kindOK, f.id, State{ID: "c"})
		default: // as conn.unary: no such container
			err = writeFrame(uc, kindError, f.id, encodeError(errdefs.ErrNotFound))
		}
		if err != nil {
			return err
		}
	}
}
