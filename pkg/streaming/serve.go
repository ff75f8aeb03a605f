package streaming

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// ServeHTTP serves the session of a URL. It returns when the session is over and its connection closed.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind, token, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	prepared, ok := s.tokens.take(token)
	if !ok || prepared.kind != kind {
		http.NotFound(w, r)
		return
	}
	if !s.sessions.begin() {
		http.Error(w, "the server stops", http.StatusServiceUnavailable)
		return
	}
	defer s.sessions.end()
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	h := &hijacker{ResponseWriter: w, server: s.ctx, end: cancel}
	b := &bridge{runtime: s.runtime, ctx: ctx}
	s.serve(h, r.WithContext(ctx), b, prepared.request)
	cancel()
	b.forwards.close()
	if h.conn != nil {
		h.conn.Close()
		h.conn.wait()
	}
}

func (s *Server) serve(w *hijacker, r *http.Request, b *bridge, request any) {
	idle, creation := s.cfg.IdleTimeout, s.cfg.CreationTimeout
	websocket := wsstream.IsWebSocketRequest(r)
	switch q := request.(type) {
	case *runtimeapi.ExecRequest:
		if websocket {
			serveWebSocket(w, r, w.end, q, idle, func(st Streams) error { return b.exec(r.Context(), q.GetContainerId(), q.GetCmd(), st) })
			return
		}
		remotecommand.ServeExec(w, r, b, "", "", q.GetContainerId(), q.GetCmd(), options(q), idle, creation, remotecommand.SupportedStreamingProtocols)
	case *runtimeapi.AttachRequest:
		if websocket {
			serveWebSocket(w, r, w.end, q, idle, func(st Streams) error { return b.runtime.Attach(r.Context(), q.GetContainerId(), st) })
			return
		}
		remotecommand.ServeAttach(w, r, b, "", "", q.GetContainerId(), options(q), idle, creation, remotecommand.SupportedStreamingProtocols)
	case *runtimeapi.PortForwardRequest:
		forward := func(w http.ResponseWriter, r *http.Request) {
			portforward.ServePortForward(w, r, b, q.GetPodSandboxId(), "", &portforward.V4Options{Ports: q.GetPort()}, idle, creation, portforward.SupportedProtocols)
		}
		if wsstream.IsWebSocketRequestWithTunnelingProtocol(r) {
			serveTunnel(w, r, forward)
			return
		}
		forward(w, r)
	}
}

func options(w wanted) *remotecommand.Options {
	return &remotecommand.Options{Stdin: w.GetStdin(), Stdout: w.GetStdout(), Stderr: w.GetStderr(), TTY: w.GetTty()}
}

// bridge is what the library calls of one session. The contexts that it passes end too late or never.
type bridge struct {
	runtime  Runtime
	ctx      context.Context // of the session
	forwards group
}

// exitError is a program's exit code in the form in which the library passes it on.
type exitError int

func (e exitError) Error() string   { return fmt.Sprintf("command terminated with exit code %d", int(e)) }
func (e exitError) String() string  { return e.Error() }
func (e exitError) Exited() bool    { return true }
func (e exitError) ExitStatus() int { return int(e) }

// ExecInContainer implements remotecommand.Executor.
func (b *bridge) ExecInContainer(_ context.Context, _, _, id string, cmd []string, in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	return b.exec(b.ctx, id, cmd, streams(in, out, errw, tty, resize))
}

// AttachContainer implements remotecommand.Attacher.
func (b *bridge) AttachContainer(_ context.Context, _, _, id string, in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return b.runtime.Attach(b.ctx, id, streams(in, out, errw, tty, resize))
}

// PortForward implements portforward.PortForwarder.
func (b *bridge) PortForward(_ context.Context, id, _ string, port int32, stream io.ReadWriteCloser) error {
	if !b.forwards.begin() {
		return context.Canceled
	}
	defer b.forwards.end()
	return b.runtime.PortForward(b.ctx, id, port, stream)
}

func (b *bridge) exec(ctx context.Context, id string, cmd []string, st Streams) error {
	code, err := b.runtime.Exec(ctx, id, cmd, st)
	if err == nil && code != 0 {
		return exitError(code)
	}
	return err
}

// streams leaves out nil values in interfaces that are not nil themselves.
func streams(in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) Streams {
	st := Streams{Stdin: in, TTY: tty, Resize: resize}
	if out != nil {
		st.Stdout = out
	}
	if errw != nil {
		st.Stderr = errw
	}
	return st
}
