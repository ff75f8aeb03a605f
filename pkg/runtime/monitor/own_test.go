package monitor

import (
	"context"
	"net"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// execSeer is an engine that remembers what sessions were asked of it.
type execSeer struct {
	forkEngine
	seen *[]*engine.ExecConfig
}

type execSeerContainer struct {
	engine.Container
	seen *[]*engine.ExecConfig
}

func (e execSeer) Create(ctx context.Context, c *engine.Config) (engine.Container, error) {
	ct, err := e.forkEngine.Create(ctx, c)
	return execSeerContainer{ct, e.seen}, err
}

func (c execSeerContainer) Exec(ctx context.Context, x *engine.ExecConfig) (engine.Process, error) {
	*c.seen = append(*c.seen, x)
	return c.Container.Exec(ctx, x)
}

// TestOwn: a session with the container's own filter gets that, also from a cri-monitor that has to be told it again.
func TestOwn(t *testing.T) {
	var seen []*engine.ExecConfig
	n := newNodeWith(t, func(*OCIRuntime) (engine.Engine, error) { return execSeer{forkEngine{theReaper()}, &seen}, nil })
	filter := []byte("filter 8")
	req := n.request("c", "sleep 1000")
	req.Seccomp = filter
	n.run(req)
	oci := n.request("oci", "sleep 1000")
	oci.Seccomp, oci.OCI = filter, &OCIRuntime{}
	n.run(oci)
	caps := &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN"}}
	for i, tt := range []struct {
		own, forgotten, oci bool
		wantCaps            bool // all was sent
	}{{own: true}, {wantCaps: true}, {own: true, forgotten: true, wantCaps: true}, {own: true}, {own: true, oci: true, wantCaps: true}} {
		id := "c"
		if tt.oci {
			id = "oci"
		}
		ct, err := n.s.find(id)
		if err != nil {
			t.Fatal(err)
		}
		if tt.forgotten {
			ct.execs.mu.Lock()
			ct.execs.own = own{}
			ct.execs.mu.Unlock()
		}
		x, err := n.Exec(t.Context(), &ExecRequest{ID: id, Seccomp: filter, Own: tt.own, Brief: true,
			Process: &specs.Process{Args: []string{"true"}, Env: []string{"A=\xff"}, Capabilities: caps}})
		if err != nil {
			t.Fatal(err)
		}
		if code, err := x.Wait(t.Context()); code != 0 || err != nil {
			t.Errorf("%d: code %d, %v", i, code, err)
		}
		_ = x.Close()
		got := seen[len(seen)-1]
		if len(seen) != i+1 || string(got.Seccomp) != string(filter) || (got.Process.Capabilities != nil) != tt.wantCaps || got.Process.Env[0] != "A=\xff" {
			t.Errorf("%d: %d sessions, %+v of %+v", i, len(seen), got, got.Process)
		}
	}
	if _, err := n.Exec(t.Context(), &ExecRequest{ID: "none", Own: true, Process: &specs.Process{Args: []string{"true"}}}); !errdefs.IsNotFound(err) {
		t.Errorf("no such container: %v", err)
	}
}

// TestOwnAndOlder: a cri-monitor that does not know the request gets the former one.
func TestOwnAndOlder(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	var kinds []kind
	var call stdioCall
	served := make(chan error, 1)
	serve := func() error {
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
			kinds = append(kinds, f.kind)
			switch f.kind {
			case kindHello:
				err = writeFrame(uc, kindOK, f.id, hello{protocolMin, protocolMax})
			case kindExec:
				if err = f.decode(&call); err == nil {
					err = writeFrame(uc, kindExited, f.id, execExited{4, &execStarted{Pid: 7, Session: 1}})
				}
			default: // as conn.unary, once it has found the container
				err = writeFrame(uc, kindError, f.id, encodeError(errdefs.ErrNotImplemented))
			}
			if err != nil {
				return err
			}
		}
	}
	go func() {
		err := serve()
		if err == nil { // the connection that was refused is closed
			err = serve()
		}
		served <- err
	}()
	client, err := Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	p := &specs.Process{Args: []string{"true"}, Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 1, Hard: 2}}}
	x, err := client.Exec(t.Context(), &ExecRequest{ID: "c", Process: p, Seccomp: []byte("filter 8"), Own: true, Brief: true})
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	_ = x.Close()
	_ = client.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if want := []kind{kindHello, kindExecOwn, kindHello, kindExec}; !reflect.DeepEqual(kinds, want) {
		t.Errorf("kinds %v", kinds)
	}
	if string(call.Seccomp) != "filter 8" || !call.Own || !reflect.DeepEqual(call.Process, p) {
		t.Errorf("%+v", call)
	}
}
