package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/config"
)

// fakeService answers Version, and Status when released.
type fakeService struct {
	fakeCRI
	mu      sync.Mutex
	calls   []string
	entered chan struct{}
	release chan struct{}
	version func(context.Context) error // nil: at once
}

func (f *fakeService) Version(ctx context.Context, q *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	if f.version != nil {
		if err := f.version(ctx); err != nil {
			return nil, err
		}
	}
	return f.fakeCRI.Version(ctx, q)
}

func (f *fakeService) note(s string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, s)
}

func (f *fakeService) noted() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.calls, " ")
}

func (f *fakeService) ServerOptions() []grpc.ServerOption { return nil }
func (f *fakeService) Register(r grpc.ServiceRegistrar) {
	runtimeapi.RegisterRuntimeServiceServer(r, f)
}
func (f *fakeService) Admin() http.Handler         { return http.NotFoundHandler() }
func (f *fakeService) Reload(c *config.Config)     { f.note("reload-" + c.LogLevel) }
func (f *fakeService) Drain()                      { f.note("drain") }
func (f *fakeService) Close(context.Context) error { f.note("close"); return nil }

func (f *fakeService) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	close(f.entered)
	<-f.release
	f.note("status")
	return &runtimeapi.StatusResponse{}, nil
}

// node is a daemon in directories of its own.
type node struct {
	dir, file string
	cfg       *config.Config
	svc       *fakeService
	states    chan string
	stop      context.CancelFunc
	done      chan error
	wait      func() // for the end
	log       *lockedBuffer
	version   func(context.Context) error
	delayed   func() time.Duration
}

type lockedBuffer struct {
	mu    sync.Mutex
	b     bytes.Buffer
	wrote chan struct{} // holds one when something was written
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.wrote <- struct{}{}:
	default:
	}
	return l.b.Write(p)
}

// await waits until text is in it.
func (l *lockedBuffer) await(t *testing.T, text string) {
	t.Helper()
	for late := time.After(30 * time.Second); !strings.Contains(l.String(), text); {
		select {
		case <-l.wrote:
		case <-late:
			t.Fatalf("no %q in the log:\n%s", text, l)
		}
	}
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{dir: t.TempDir()}
	n.file = filepath.Join(n.dir, "config.toml")
	n.write(t, "")
	n.load(t)
	return n
}

func (n *node) write(t *testing.T, extra string) {
	t.Helper()
	text := fmt.Sprintf("socket = '%[1]s/s/cri.sock'\nstate = '%[1]s/state'\nroot = '%[1]s/root'\nsocket_mode = '0640'\n%[2]s", n.dir, extra)
	if err := os.WriteFile(n.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (n *node) load(t *testing.T) {
	t.Helper()
	var err error
	if n.cfg, err = config.Load(config.Sources{File: n.file}); err != nil {
		t.Fatal(err)
	}
}

// start runs the daemon until it is ready or has failed.
func (n *node) start(t *testing.T) error {
	t.Helper()
	n.svc = &fakeService{entered: make(chan struct{}), release: make(chan struct{}), version: n.version}
	n.states, n.done, n.log = make(chan string, 100), make(chan error, 1), &lockedBuffer{wrote: make(chan struct{}, 1)}
	ctx, stop := context.WithCancel(t.Context())
	n.stop = stop
	d := daemon{
		log: slog.New(slog.NewTextHandler(n.log, nil)), level: &slog.LevelVar{},
		new:    func(context.Context, *config.Config, *slog.Logger) (service, error) { return n.svc, nil },
		notify: func(s string) { n.states <- s }, delayed: n.delayed,
	}
	done := n.done
	go func() { done <- d.serve(ctx, n.cfg) }()
	n.wait = sync.OnceFunc(func() {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(30 * time.Second):
			t.Error("the daemon does not stop")
		}
	})
	select {
	case s := <-n.states:
		if !strings.HasPrefix(s, "READY=1") {
			t.Fatal(s)
		}
		wait := n.wait
		t.Cleanup(func() { stop(); wait() })
		return nil
	case err := <-n.done:
		stop()
		return err
	}
}

func (n *node) client(t *testing.T) *client {
	t.Helper()
	e := endpoint{file: n.file}
	c, err := e.dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestServeAndStop(t *testing.T) {
	n := newNode(t)
	if err := n.start(t); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{
		n.cfg.Socket: 0o640, filepath.Join(n.cfg.State, adminSocket): 0o600, n.cfg.State: 0o711, n.cfg.Root: 0o700,
	} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, st.Mode(), err)
		}
	}
	c := n.client(t)
	if _, err := c.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
		t.Fatal(err)
	}
	// A call that runs at SIGTERM is let end before the service closes.
	answered := make(chan error, 1)
	go func() {
		_, err := c.Status(t.Context(), &runtimeapi.StatusRequest{})
		answered <- err
	}()
	<-n.svc.entered
	n.stop()
	if s := <-n.states; s != "STOPPING=1" {
		t.Error(s)
	}
	close(n.svc.release)
	if err := <-answered; err != nil {
		t.Errorf("the running call: %v", err)
	}
	n.wait()
	if got := n.svc.noted(); got != "drain status close" {
		t.Error(got)
	}
	for _, path := range []string{n.cfg.Socket, filepath.Join(n.cfg.State, adminSocket)} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	// The same directories serve again.
	if err := n.start(t); err != nil {
		t.Error(err)
	}
}

func TestTwoServersRefuseEachOther(t *testing.T) {
	n := newNode(t)
	if err := n.start(t); err != nil {
		t.Fatal(err)
	}
	pid := strconv.Itoa(os.Getpid())
	for what, taken := range map[string]string{"state": n.cfg.State, "root": n.cfg.Root, "socket": n.cfg.Socket} {
		m := newNode(t)
		switch what {
		case "state":
			m.cfg.State = taken
		case "root":
			m.cfg.Root = taken
		case "socket":
			m.cfg.Socket = taken
		}
		err := m.start(t)
		if !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), taken) || !strings.Contains(err.Error(), pid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// The refused ones have left the first alone.
	if _, err := n.client(t).Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
		t.Error(err)
	}
}

func TestSockets(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if l, err = listenUnix(t.Context(), stale, 0o600, os.Getgid()); err != nil {
		t.Fatalf("a stale socket must be replaced: %v", err)
	}
	l.Close()

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(t.Context(), file, 0o600, 0); !errdefs.IsAlreadyExists(err) {
		t.Error(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(t.Context(), link, 0o600, 0); !errdefs.IsAlreadyExists(err) {
		t.Error(err)
	}
	if b, _ := os.ReadFile(file); string(b) != "precious" {
		t.Error("the file was touched")
	}
	if _, err := lookupGroup("no-such-group"); err == nil {
		t.Error("an unknown group was accepted")
	}
	for name, want := range map[string]int{"root": 0, "0": 0, "1234": 1234} {
		if got, err := lookupGroup(name); got != want || err != nil {
			t.Errorf("%s: %d, %v", name, got, err)
		}
	}
}

func TestReloadOnHangup(t *testing.T) {
	n := newNode(t)
	if err := n.start(t); err != nil {
		t.Fatal(err)
	}
	hangup := func(extra string) {
		t.Helper()
		n.write(t, extra)
		if err := unix.Kill(os.Getpid(), unix.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if s := <-n.states; !strings.HasPrefix(s, "RELOADING=1\nMONOTONIC_USEC=") {
			t.Error(s)
		}
		if s := <-n.states; s != "READY=1" {
			t.Error(s)
		}
	}
	hangup("log_level = 'error'\nshm_size = '1MiB'\n")
	hangup("log_level = 'loud'\n")
	hangup("log_level = 'warn'\n")
	if got := n.svc.noted(); got != "reload-error reload-warn" {
		t.Error(got)
	}
	for _, want := range []string{"restart cri-server for it to take effect", "option=shm_size", "configuration not reloaded"} {
		if !strings.Contains(n.log.String(), want) {
			t.Errorf("no %q in the log:\n%s", want, n.log)
		}
	}
}

func TestFailedStartLeavesNothing(t *testing.T) {
	n := newNode(t)
	d := daemon{log: slog.New(slog.DiscardHandler), level: &slog.LevelVar{}, notify: func(s string) { t.Error(s) },
		new: func(context.Context, *config.Config, *slog.Logger) (service, error) {
			return nil, errors.New("no monitor")
		}}
	if err := d.serve(t.Context(), n.cfg); err == nil || err.Error() != "no monitor" {
		t.Error(err)
	}
	if _, err := os.Lstat(n.cfg.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if err := n.start(t); err != nil {
		t.Errorf("the locks are still held: %v", err)
	}
}
