package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/seed-9a14075a/cri-server/pkg/runtime"
	"github.com/seed-9a14075a/cri-server/pkg/sandbox"
)

// streamServer serves the URLs that Exec, Attach and PortForward hand out.
type streamServer struct {
	streaming.Server
	http *http.Server
	done chan struct{}
}

// newStreamServer listens on addr (host:port; port 0 takes a free one) and serves until close.
func newStreamServer(s *Server, addr string, idle time.Duration, log *slog.Logger) (*streamServer, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("streaming server: %w", err)
	}
	cfg := streaming.DefaultConfig
	cfg.Addr = l.Addr().String()
	cfg.BaseURL = &url.URL{Scheme: "http", Host: cfg.Addr}
	if idle > 0 {
		cfg.StreamIdleTimeout = idle
	}
	srv, err := streaming.NewServer(cfg, streams{s})
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("streaming server: %w", err)
	}
	st := &streamServer{Server: srv, done: make(chan struct{}), http: &http.Server{
		Handler: srv, ReadHeaderTimeout: 30 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}}
	go func() {
		defer close(st.done)
		if err := st.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("streaming server", "error", err)
		}
	}()
	return st, nil
}

func (st *streamServer) close() {
	st.http.Close()
	<-st.done
}

// Exec prepares a session that runs a program in a container and returns its URL.
func (s *Server) Exec(_ context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	ctr, err := s.running(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	r.ContainerId = ctr.ID
	return s.streaming.GetExec(r)
}

// Attach prepares a session connected to a container's program and returns its URL.
func (s *Server) Attach(_ context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	ctr, err := s.running(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	r.ContainerId = ctr.ID
	return s.streaming.GetAttach(r)
}

func (s *Server) running(id string) (*runtime.Container, error) {
	ctr, err := s.containers.Get(id)
	if err != nil {
		return nil, err
	}
	if ctr.State != runtime.Running {
		return nil, fmt.Errorf("container %s is %s, not running: %w", ctr.ID, ctr.State, errdefs.ErrFailedPrecondition)
	}
	return ctr, nil
}

// PortForward prepares a session that reaches ports of a pod and returns its URL.
func (s *Server) PortForward(_ context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	sb, err := s.sandboxes.Get(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if sb.State != sandbox.Ready {
		return nil, fmt.Errorf("sandbox %s is not ready: %w", sb.ID, errdefs.ErrFailedPrecondition)
	}
	r.PodSandboxId = sb.ID
	return s.streaming.GetPortForward(r)
}

// streams is the streaming server's way to containers and pods.
type streams struct{ s *Server }

// exitError is a program's exit code in the form in which the streaming server passes it on.
type exitError int

func (e exitError) Error() string   { return fmt.Sprintf("command terminated with exit code %d", int(e)) }
func (e exitError) String() string  { return e.Error() }
func (e exitError) Exited() bool    { return true }
func (e exitError) ExitStatus() int { return int(e) }

// Exec runs a program with the client's streams.
func (t streams) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	code, err := t.s.containers.Exec(ctx, id, cmd, clientStreams(ctx, in, out, errw, tty, resize))
	if err != nil {
		return err
	}
	if code != 0 {
		return exitError(code)
	}
	return nil
}

// Attach connects the client's streams to a container's program.
func (t streams) Attach(ctx context.Context, id string, in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return t.s.containers.Attach(ctx, id, clientStreams(ctx, in, out, errw, tty, resize))
}

// clientStreams wraps the client's streams; sizes are passed on until ctx ends.
func clientStreams(ctx context.Context, in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) runtime.Streams {
	st := runtime.Streams{TTY: tty}
	if in != nil {
		st.Stdin = in
	}
	if out != nil {
		st.Stdout = out
	}
	if errw != nil {
		st.Stderr = errw
	}
	sizes := make(chan runtime.Size)
	st.Resize = sizes
	go func() {
		defer close(sizes)
		for {
			select {
			case size, ok := <-resize:
				if !ok {
					return
				}
				select {
				case sizes <- runtime.Size{Width: size.Width, Height: size.Height}:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return st
}

// PortForward copies between the client and a port of the pod.
func (t streams) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	sb, err := t.s.sandboxes.Get(id)
	if err != nil {
		return err
	}
	if sb.State != sandbox.Ready {
		return fmt.Errorf("sandbox %s is not ready: %w", sb.ID, errdefs.ErrFailedPrecondition)
	}
	return sandbox.Forward(ctx, sb, port, stream)
}
