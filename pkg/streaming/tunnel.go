package streaming

import (
	"bufio"
	"net"
	"net/http"

	"golang.org/x/net/websocket"
)

// tunnel is the response to a request that stands for the one inside a WebSocket. It has nothing to say before its
// connection, the WebSocket, is taken from it.
type tunnel struct {
	ws     *websocket.Conn
	header http.Header
}

// Header implements http.ResponseWriter.
func (t *tunnel) Header() http.Header { return t.header }

// Write implements http.ResponseWriter. It is called only for errors, for which the client has no ear yet.
func (t *tunnel) Write(b []byte) (int, error) { return len(b), nil }

// WriteHeader implements http.ResponseWriter.
func (t *tunnel) WriteHeader(int) {}

// Hijack implements http.Hijacker.
func (t *tunnel) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.ws, bufio.NewReadWriter(bufio.NewReader(t.ws), bufio.NewWriter(t.ws)), nil
}
