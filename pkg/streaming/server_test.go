package streaming

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/net/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestTokens(t *testing.T) {
	s, _ := serve(t, Config{TokenTimeout: 300 * time.Millisecond})
	get := func(u string) int {
		t.Helper()
		r, err := http.Get(u)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		return r.StatusCode
	}
	request := &runtimeapi.ExecRequest{Cmd: []string{"cat"}, Stdout: true}
	u := execURL(t, s, request)
	if !regexp.MustCompile(`^http://127\.0\.0\.1:\d+/exec/[\w-]{43}$`).MatchString(u) {
		t.Errorf("URL %s", u)
	}
	if u2 := execURL(t, s, request); u2 == u {
		t.Error("the same token again")
	}
	if got := get(u); got != http.StatusBadRequest { // no upgrade
		t.Errorf("first use: %d", got)
	}
	if got := get(u); got != http.StatusNotFound {
		t.Errorf("second use: %d", got)
	}
	if got := get(strings.Replace(execURL(t, s, request), "/exec/", "/attach/", 1)); got != http.StatusNotFound {
		t.Errorf("for another kind of session: %d", got)
	}
	late := execURL(t, s, request)
	until(t, "tokens expire", func() bool { s.tokens.mu.Lock(); defer s.tokens.mu.Unlock(); return len(s.tokens.waiting) == 0 })
	if got := get(late); got != http.StatusNotFound {
		t.Errorf("expired: %d", got)
	}
}

func TestTooManyWaiting(t *testing.T) {
	s, _ := serve(t, Config{})
	for range maxWaiting {
		forwardURL(t, s)
	}
	if _, err := s.PortForwardURL(&runtimeapi.PortForwardRequest{PodSandboxId: "p"}); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("got %v", err)
	}
}

func TestBadRequests(t *testing.T) {
	s, _ := serve(t, Config{})
	for name, r := range map[string]*runtimeapi.ExecRequest{
		"no streams":     {Cmd: []string{"x"}},
		"tty and stderr": {Cmd: []string{"x"}, Tty: true, Stdout: true, Stderr: true},
		"no command":     {Stdout: true},
	} {
		if _, err := s.ExecURL(r); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.PortForwardURL(&runtimeapi.PortForwardRequest{Port: []int32{70000}}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("port: %v", err)
	}
}

// A session ends with its client even while the runtime reads nothing and input has piled up. (Were the connection full,
// the client's kernel would have to keep back the news of its end.)
func TestClientGoes(t *testing.T) {
	s, f := serve(t, Config{})
	request := func() string {
		return execURL(t, s, &runtimeapi.ExecRequest{Cmd: []string{"wait"}, Stdin: true, Stdout: true})
	}
	flood := make([]byte, 100)
	for name, dial := range map[string]func() net.Conn{
		"SPDY": func() net.Conn {
			st, _, c := dialSPDY(t, request(), "v4.channel.k8s.io", "error", "stdin", "stdout")
			for range 200 {
				if _, err := st["stdin"].Write(flood); err != nil {
					t.Fatal(err)
				}
			}
			return c
		},
		"WebSocket": func() net.Conn {
			ws := dialWebSocket(t, request(), "v5.channel.k8s.io")
			for range 200 {
				if err := websocket.Message.Send(ws, flood); err != nil {
					t.Fatal(err)
				}
			}
			return ws
		},
	} {
		c := dial()
		select {
		case <-f.gone:
			t.Fatalf("%s: ended while the client was there", name)
		default:
		}
		c.Close()
		select {
		case <-f.gone:
		case <-time.After(10 * time.Second):
			t.Errorf("%s: the session goes on", name)
		}
	}
	until(t, "sessions end", func() bool { return f.running.Load() == 0 })
}

// A program must not be told that its client has closed stdin when it is the client that has ended: it would end by itself,
// and what it has started would stay.
func TestEndOfStdin(t *testing.T) {
	s, f := serve(t, Config{})
	request := func() string {
		return execURL(t, s, &runtimeapi.ExecRequest{Cmd: []string{"eof"}, Stdin: true, Stdout: true})
	}
	spdy := func() (io.Closer, io.Closer) {
		st, _, c := dialSPDY(t, request(), "v4.channel.k8s.io", "error", "stdin", "stdout")
		return c, st["stdin"]
	}
	websockets := func(protocol string) func() (io.Closer, io.Closer) {
		return func() (io.Closer, io.Closer) {
			ws := dialWebSocket(t, request(), protocol)
			return ws, closer(func() error { return websocket.Message.Send(ws, []byte{255, stdin}) })
		}
	}
	for name, tt := range map[string]struct {
		dial func() (client, stdin io.Closer)
		gone bool
	}{
		"SPDY":                {spdy, true},
		"SPDY: stdin":         {spdy, false},
		"WebSocket v5":        {websockets("v5.channel.k8s.io"), true},
		"WebSocket v5: stdin": {websockets("v5.channel.k8s.io"), false},
		"WebSocket v4":        {websockets("v4.channel.k8s.io"), true},
		"WebSocket v4: close": {func() (io.Closer, io.Closer) {
			ws := dialWebSocket(t, request(), "v4.channel.k8s.io")
			return closer(func() error { return ws.WriteClose(1000) }), nil
		}, true},
	} {
		for range 20 { // it is seen in two places, in any order
			end, stdin := tt.dial()
			<-f.begun
			if !tt.gone {
				end = stdin
			}
			if err := end.Close(); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-f.ended:
				if (err != nil) != tt.gone {
					t.Fatalf("%s: stdin ends, and the session's context is: %v", name, err)
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("%s: stdin does not end", name)
			}
		}
	}
}

type closer func() error

func (f closer) Close() error { return f() }

func TestTimeouts(t *testing.T) {
	s, f := serve(t, Config{IdleTimeout: 200 * time.Millisecond, CreationTimeout: 200 * time.Millisecond})
	request := &runtimeapi.ExecRequest{Cmd: []string{"wait"}, Stdin: true, Stdout: true}
	_, conn, _ := dialSPDY(t, execURL(t, s, request), "v4.channel.k8s.io", "error", "stdin", "stdout")
	<-conn.CloseChan()
	<-f.gone
	receive(t, dialWebSocket(t, execURL(t, s, request), "v5.channel.k8s.io"), false)
	<-f.gone

	s, _ = serve(t, Config{CreationTimeout: 200 * time.Millisecond})
	_, conn, _ = dialSPDY(t, execURL(t, s, request), "v4.channel.k8s.io", "error", "stdin")
	<-conn.CloseChan()
}

// Close ends the sessions that run.
func TestClose(t *testing.T) {
	s, f := serve(t, Config{})
	_, conn, _ := dialSPDY(t, execURL(t, s, &runtimeapi.ExecRequest{Cmd: []string{"wait"}, Stdin: true, Stdout: true}), "v4.channel.k8s.io", "error", "stdin", "stdout")
	ws := dialWebSocket(t, forwardURL(t, s, 8080), "v4.channel.k8s.io")
	s.Close()
	until(t, "sessions end", func() bool { return f.running.Load() == 0 })
	<-conn.CloseChan()
	receive(t, ws, false)
}

func TestTLS(t *testing.T) {
	cert, key := certificate(t)
	s, _ := serve(t, Config{CertFile: cert, KeyFile: key})
	u := execURL(t, s, &runtimeapi.ExecRequest{Cmd: []string{"cat"}, Stdin: true, Stdout: true, Stderr: true})
	if !strings.HasPrefix(u, "https://") {
		t.Fatal(u)
	}
	st, _, _ := dialSPDY(t, u, "v4.channel.k8s.io", "error", "stdin", "stdout", "stderr")
	out := readAll(st["stdout"])
	_, _ = st["stdin"].Write([]byte("hello"))
	st["stdin"].Close()
	if got := out(t); got != "hello" {
		t.Errorf("%q", got)
	}
	if _, err := New(Config{Address: "127.0.0.1:0", CertFile: key, KeyFile: cert, Log: s.cfg.Log}, nil); err == nil {
		t.Error("a key was taken for a certificate")
	}
}

func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(t.TempDir(), "cert"), filepath.Join(t.TempDir(), "key")
	for path, b := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func TestReachable(t *testing.T) {
	for ip, want := range map[string]string{"0.0.0.0": "127.0.0.1:5", "::": "[::1]:5", "10.0.0.1": "10.0.0.1:5", "fd00::1": "[fd00::1]:5"} {
		if got := reachable(&net.TCPAddr{IP: net.ParseIP(ip), Port: 5}); got != want {
			t.Errorf("%s: %s", ip, got)
		}
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// 500 sessions of all kinds, well and badly ended, leave neither goroutines nor descriptors.
func TestNoLeaks(t *testing.T) {
	s, f := serve(t, Config{})
	one := func(i int) {
		switch i % 5 {
		case 0:
			st, conn, c := dialSPDY(t, execURL(t, s, &runtimeapi.ExecRequest{Cmd: []string{"cat"}, Stdin: true, Stdout: true, Stderr: true}), "v4.channel.k8s.io", "error", "stdin", "stdout", "stderr")
			st["stdin"].Close()
			for _, name := range []string{"stdout", "stderr", "error"} { // else the client's goroutines stay
				readAll(st[name])(t)
			}
			<-conn.CloseChan()
			c.Close()
		case 1: // the client vanishes
			_, _, c := dialSPDY(t, execURL(t, s, &runtimeapi.ExecRequest{Cmd: []string{"wait"}, Stdin: true, Stdout: true}), "v4.channel.k8s.io", "error", "stdin", "stdout")
			c.Close()
			<-f.gone
		case 2:
			ws := dialWebSocket(t, execURL(t, s, &runtimeapi.ExecRequest{Cmd: []string{"size"}, Stdin: true, Stdout: true, Tty: true}), "v5.channel.k8s.io")
			_ = websocket.Message.Send(ws, append([]byte{resize}, `{"Width":1,"Height":1}`...))
			receive(t, ws, false)
			ws.Close()
		case 3:
			_, conn, c := dialSPDY(t, forwardURL(t, s), "portforward.k8s.io")
			data, _ := pair(t, conn, "a", "8080")
			echo(t, data, 1000)
			conn.Close()
			c.Close()
		case 4: // leaves while forwarding
			ws := dialWebSocket(t, forwardURL(t, s, 8080), "v4.channel.k8s.io")
			_ = websocket.Message.Send(ws, []byte("\x00hello"))
			ws.Close()
		}
	}
	for i := range 5 {
		one(i)
	}
	until(t, "sessions end", func() bool { return f.running.Load() == 0 })
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	for i := range 500 {
		one(i)
	}
	until(t, "sessions end", func() bool { return f.running.Load() == 0 })
	t.Cleanup(func() {
		if t.Failed() {
			_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
		}
	})
	until(t, "goroutines and descriptors end", func() bool {
		return runtime.NumGoroutine() <= goroutines+5 && openFiles(t) <= files+2
	})
}
