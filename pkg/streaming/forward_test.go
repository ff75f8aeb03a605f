package streaming

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

func forwardURL(t *testing.T, s *Server, ports ...int32) string {
	t.Helper()
	u, err := s.PortForwardURL(&runtimeapi.PortForwardRequest{PodSandboxId: "p", Port: ports})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// pair opens the two streams of one forwarded connection.
func pair(t *testing.T, conn httpstream.Connection, id, port string) (data, errors httpstream.Stream) {
	t.Helper()
	h := http.Header{"Port": {port}, "Requestid": {id}, "Streamtype": {"error"}}
	errors = open(t, conn, h)
	errors.Close() // this side has nothing to say on it
	h.Set("Streamtype", "data")
	return open(t, conn, h), errors
}

// echo sends size random bytes and expects them back.
func echo(t *testing.T, data httpstream.Stream, size int64) {
	t.Helper()
	sent, got := sha256.New(), sha256.New()
	go func() {
		_, _ = io.Copy(data, io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), sent))
		data.Close()
	}()
	n, err := io.Copy(got, data)
	if err != nil || n != size || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Errorf("%d of %d bytes came back, error %v", n, size, err)
	}
}

func TestPortForwardSPDY(t *testing.T) {
	s, _ := serve(t, Config{})
	_, conn, _ := dialSPDY(t, forwardURL(t, s), "portforward.k8s.io")
	forwards(t, conn)
}

func TestPortForwardTunnel(t *testing.T) {
	s, _ := serve(t, Config{})
	ws := dialWebSocket(t, forwardURL(t, s), "SPDY/3.1+portforward.k8s.io")
	conn, err := spdy.NewClientConnection(ws)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	forwards(t, conn)
}

func forwards(t *testing.T, conn httpstream.Connection) {
	t.Helper()
	for i, size := range []int64{0, 1, 200 << 20} {
		data, errors := pair(t, conn, string(rune('a'+i)), "8080")
		message := readAll(errors)
		echo(t, data, size)
		if m := message(t); m != "" {
			t.Errorf("error stream: %q", m)
		}
	}
	_, errors := pair(t, conn, "z", "1")
	if m := readAll(errors)(t); !strings.Contains(m, "connection refused") {
		t.Errorf("error stream of a port nobody listens on: %q", m)
	}
}

func TestPortForwardWebSocket(t *testing.T) {
	s, _ := serve(t, Config{})
	ws := dialWebSocket(t, forwardURL(t, s, 8080, 8081), "v4.channel.k8s.io")
	for _, data := range []byte{0, 2} {
		if err := websocket.Message.Send(ws, append([]byte{data}, "hello"...)); err != nil {
			t.Fatal(err)
		}
	}
	got := map[byte]string{}
	for len(got[0]) < 7 || len(got[2]) < 7 || len(got[1]) < 2 || len(got[3]) < 2 {
		var m []byte
		if err := websocket.Message.Receive(ws, &m); err != nil {
			t.Fatalf("%v after %q", err, got)
		}
		got[m[0]] += string(m[1:])
	}
	// Each channel begins with its port, little endian.
	if got[0] != "\x90\x1fhello" || got[2] != "\x91\x1fhello" || got[1] != "\x90\x1f" || got[3] != "\x91\x1f" {
		t.Errorf("%q", got)
	}
}
