// Package streaming serves the sessions of exec, attach and port-forward over HTTP.
//
// The CRI only prepares a session and answers with a URL; whoever has the URL (kubelet on behalf of the API server, or
// crictl) then connects to it. There is no other proof of who that is: a URL holds a random token of 256 bits, is good
// for one connection and for a minute, and the server listens on loopback unless it is told otherwise.
//
// Clients speak SPDY/3.1 (channel.k8s.io v1 to v4, portforward.k8s.io) or WebSocket (channel.k8s.io v1, v4 and v5, binary
// and base64, and SPDY tunnelled in a WebSocket for port-forward). SPDY sessions are served by k8s.io/cri-streaming, the
// code that every CRI runtime uses; it knows neither v5 nor tunnels, so WebSockets are served here.
//
// A session ends with its connection: when the client goes, the context given to Runtime ends, whether or not anything
// is read from or written to the connection at that time.
package streaming

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"
)

// Runtime does what the sessions are for. Each call returns when its session is over, at the latest soon after ctx has
// ended.
type Runtime interface {
	// Exec runs a program in a container and returns its exit code.
	Exec(ctx context.Context, id string, cmd []string, s Streams) (int, error)
	// Attach connects to a container's program.
	Attach(ctx context.Context, id string, s Streams) error
	// PortForward connects to a port of a pod.
	PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error
}

// Streams are the client's; those it has not asked for are nil.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	TTY            bool
	// Resize is nil or tells the sizes of the client's terminal until it is closed.
	Resize <-chan remotecommand.TerminalSize
}

// Config says how to serve.
type Config struct {
	// Address is host:port; port 0 takes a free one.
	Address string
	// CertFile and KeyFile make it TLS; both or none. They are read anew for every connection.
	CertFile, KeyFile string
	// IdleTimeout ends a session on which nothing was sent for so long. 0: 4 hours.
	IdleTimeout time.Duration
	// CreationTimeout is how long a connected client may take to open its streams. 0: 30 s.
	CreationTimeout time.Duration
	// TokenTimeout is how long a URL is good. 0: one minute.
	TokenTimeout time.Duration
	Log          *slog.Logger
}

// Server serves sessions. It is safe for concurrent use.
type Server struct {
	cfg     Config
	runtime Runtime
	tokens  tokens
	base    url.URL
	http    *http.Server

	ctx      context.Context // of all sessions
	stop     context.CancelFunc
	sessions group
	served   chan struct{}
}

// klogOnce: the library's logger is a global variable without a lock.
var klogOnce sync.Once

// New listens and serves until Close.
func New(cfg Config, r Runtime) (*Server, error) {
	for _, d := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{{&cfg.IdleTimeout, 4 * time.Hour}, {&cfg.CreationTimeout, remotecommand.DefaultStreamCreationTimeout}, {&cfg.TokenTimeout, time.Minute}} {
		if *d.value == 0 {
			*d.value = d.fallback
		}
	}
	// The library logs every session that goes wrong, which is the client's matter, as an error.
	klogOnce.Do(func() { klog.SetSlogLogger(slog.New(demoted{cfg.Log.Handler()})) })

	l, err := net.Listen("tcp", cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("streaming server: %w", err)
	}
	s := &Server{cfg: cfg, runtime: r, served: make(chan struct{}), base: url.URL{Scheme: "http", Host: reachable(l.Addr())}}
	s.tokens.timeout = cfg.TokenTimeout
	if cfg.CertFile != "" {
		if _, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile); err != nil {
			l.Close()
			return nil, fmt.Errorf("streaming server: certificate: %w", err)
		}
		s.base.Scheme = "https"
		l = tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: s.certificate})
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: 30 * time.Second, ErrorLog: slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug)}
	go func() {
		defer close(s.served)
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			cfg.Log.Error("streaming server", "error", err)
		}
	}()
	return s, nil
}

func (s *Server) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c, err := tls.LoadX509KeyPair(s.cfg.CertFile, s.cfg.KeyFile)
	return &c, err
}

// reachable is the address that a client on this machine uses.
func reachable(a net.Addr) string {
	host, port, err := net.SplitHostPort(a.String())
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		// A socket bound to :: takes IPv4 too unless the machine has turned that off.
		if host = "127.0.0.1"; ip.To4() == nil {
			host = "::1"
		}
		return net.JoinHostPort(host, port)
	}
	return a.String()
}

// Close ends all sessions and waits for them.
func (s *Server) Close() {
	s.stop()
	s.http.Close()
	<-s.served
	s.sessions.close()
	s.tokens.clear()
}

// ExecURL prepares a session that runs a program.
func (s *Server) ExecURL(r *runtimeapi.ExecRequest) (string, error) {
	if len(r.GetCmd()) == 0 || r.GetCmd()[0] == "" {
		return "", fmt.Errorf("cmd is empty: %w", errdefs.ErrInvalidArgument)
	}
	return s.prepare("exec", r, r)
}

// AttachURL prepares a session connected to a container's program.
func (s *Server) AttachURL(r *runtimeapi.AttachRequest) (string, error) {
	return s.prepare("attach", r, r)
}

// PortForwardURL prepares a session that reaches ports of a pod.
func (s *Server) PortForwardURL(r *runtimeapi.PortForwardRequest) (string, error) {
	for _, p := range r.GetPort() {
		if p < 1 || p > 65535 {
			return "", fmt.Errorf("port %d: %w", p, errdefs.ErrInvalidArgument)
		}
	}
	return s.prepare("portforward", r, nil)
}

// wanted are the streams that exec and attach requests ask for.
type wanted interface {
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
	GetTty() bool
}

func (s *Server) prepare(kind string, request any, w wanted) (string, error) {
	if w != nil && w.GetTty() && w.GetStderr() {
		return "", fmt.Errorf("tty and stderr can't both be set: a terminal has one output: %w", errdefs.ErrInvalidArgument)
	}
	if w != nil && !w.GetStdin() && !w.GetStdout() && !w.GetStderr() {
		return "", fmt.Errorf("none of stdin, stdout and stderr is set: %w", errdefs.ErrInvalidArgument)
	}
	token, err := s.tokens.put(session{kind, request})
	if err != nil {
		return "", err
	}
	u := s.base
	u.Path = "/" + kind + "/" + token
	return u.String(), nil
}

// demoted logs everything as debug messages.
type demoted struct{ slog.Handler }

// Enabled implements slog.Handler.
func (h demoted) Enabled(ctx context.Context, _ slog.Level) bool {
	return h.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle implements slog.Handler.
func (h demoted) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return h.Handler.Handle(ctx, r)
}
