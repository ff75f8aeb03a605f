package streaming

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// fake is a runtime whose programs are Go. It counts the sessions that run.
type fake struct {
	running atomic.Int32
	gone    chan struct{} // told when a "wait" session ended with its context
	begun   chan struct{} // told when an "eof" session runs
	ended   chan error    // told the state of its context at the end of stdin
}

// Exec implements Runtime.
func (f *fake) Exec(ctx context.Context, _ string, cmd []string, s Streams) (int, error) {
	f.running.Add(1)
	defer f.running.Add(-1)
	switch cmd[0] {
	case "cat": // stdin to stdout, a word on stderr, exit code 7
		if s.Stdin != nil {
			if _, err := io.Copy(s.Stdout, s.Stdin); err != nil {
				return 0, err
			}
		}
		if s.Stderr != nil {
			_, _ = io.WriteString(s.Stderr, "oops")
		}
		return 7, nil
	case "line": // one line of stdin, for protocols that can't end it
		l, err := bufio.NewReader(s.Stdin).ReadString('\n')
		if err != nil {
			return 0, err
		}
		_, err = io.WriteString(s.Stdout, l)
		return 7, err
	case "size":
		size := <-s.Resize
		fmt.Fprintf(s.Stdout, "%dx%d", size.Width, size.Height)
	case "wait": // reads nothing
		<-ctx.Done()
		f.gone <- struct{}{}
	case "eof":
		f.begun <- struct{}{}
		_, _ = io.Copy(io.Discard, s.Stdin)
		f.ended <- ctx.Err()
	case "fail":
		return 0, errors.New("no such thing")
	}
	return 0, nil
}

// Attach implements Runtime.
func (f *fake) Attach(ctx context.Context, id string, s Streams) error {
	_, err := f.Exec(ctx, id, []string{"line"}, s)
	return err
}

// PortForward implements Runtime: an echo.
func (f *fake) PortForward(_ context.Context, _ string, port int32, stream io.ReadWriteCloser) error {
	f.running.Add(1)
	defer f.running.Add(-1)
	defer stream.Close()
	if port == 1 {
		return errors.New("connection refused")
	}
	_, err := io.Copy(stream, stream)
	return err
}

func serve(t *testing.T, cfg Config) (*Server, *fake) {
	t.Helper()
	f := &fake{gone: make(chan struct{}, 10), begun: make(chan struct{}, 10), ended: make(chan error, 10)}
	if cfg.Address == "" {
		cfg.Address = "127.0.0.1:0"
	}
	cfg.Log = slog.New(slog.DiscardHandler)
	s, err := New(cfg, f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, f
}

func execURL(t *testing.T, s *Server, r *runtimeapi.ExecRequest) string {
	t.Helper()
	r.ContainerId = "c"
	u, err := s.ExecURL(r)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// dialSPDY upgrades a connection and opens the named streams. It returns the connection below too.
func dialSPDY(t *testing.T, rawURL, protocol string, names ...string) (map[string]httpstream.Stream, httpstream.Connection, net.Conn) {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	var c net.Conn
	if u.Scheme == "https" {
		c, err = tls.Dial("tcp", u.Host, &tls.Config{InsecureSkipVerify: true})
	} else {
		c, err = net.Dial("tcp", u.Host)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	r, _ := http.NewRequest(http.MethodPost, rawURL, nil)
	r.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}, "X-Stream-Protocol-Version": {protocol}}
	if err := r.Write(c); err != nil {
		t.Fatal(err)
	}
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, r)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s: %s", resp.Status, b)
	}
	conn, err := spdy.NewClientConnection(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	streams := map[string]httpstream.Stream{}
	for _, n := range names {
		streams[n] = open(t, conn, http.Header{"Streamtype": {n}})
	}
	return streams, conn, c
}

func open(t *testing.T, conn httpstream.Connection, h http.Header) httpstream.Stream {
	t.Helper()
	s, err := conn.CreateStream(h)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// dialWebSocket connects with one subprotocol ("" for none).
func dialWebSocket(t *testing.T, rawURL, protocol string) *websocket.Conn {
	t.Helper()
	cfg, err := websocket.NewConfig(strings.Replace(rawURL, "http", "ws", 1), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	if protocol != "" {
		cfg.Protocol = []string{protocol}
	}
	ws, err := websocket.DialConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ws.PayloadType = websocket.BinaryFrame
	t.Cleanup(func() { ws.Close() })
	return ws
}

// readAll reads a stream in the background.
func readAll(r io.Reader) func(*testing.T) string {
	c := make(chan string, 1)
	go func() { b, _ := io.ReadAll(r); c <- string(b) }()
	return func(t *testing.T) string {
		t.Helper()
		select {
		case s := <-c:
			return s
		case <-time.After(20 * time.Second):
			t.Fatal("a stream doesn't end")
			return ""
		}
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not within 20 s: " + what)
		}
	}
}
