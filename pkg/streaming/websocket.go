package streaming

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// Channels of a WebSocket for exec and attach.
const (
	stdin = iota
	stdout
	stderr
	status
	resize
	channels
)

// serveWebSocket runs an exec or attach session over a WebSocket. The protocols: v1 ("" and channel.k8s.io) has errors as
// text; v4 has a status with the exit code; v5 can also end stdin alone. Each but v5 also exists in base64.
// end ends the session.
func serveWebSocket(w http.ResponseWriter, r *http.Request, end func(), want wanted, idle time.Duration, run func(Streams) error) {
	types := make([]wsstream.ChannelType, channels) // IgnoreChannel
	types[status], types[resize] = wsstream.WriteChannel, wsstream.ReadChannel
	first := status
	if want.GetStderr() {
		types[stderr], first = wsstream.WriteChannel, stderr
	}
	if want.GetStdout() {
		types[stdout], first = wsstream.WriteChannel, stdout
	}
	if want.GetStdin() {
		types[stdin] = wsstream.ReadChannel
	}
	binary := wsstream.ChannelProtocolConfig{Binary: true, Channels: types}
	base64 := wsstream.ChannelProtocolConfig{Channels: types}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		"": binary, wsstream.ChannelWebSocketProtocol: binary, wsstream.Base64ChannelWebSocketProtocol: base64,
		remotecommand.StreamProtocolV4Name: binary, "v4." + wsstream.Base64ChannelWebSocketProtocol: base64,
		remotecommand.StreamProtocolV5Name: binary,
	})
	conn.SetIdleTimeout(idle)
	protocol, ch, err := conn.Open(w, r)
	if err != nil {
		return // the client was told
	}
	defer conn.Close()
	// An empty message tells the client that it is connected.
	if _, err := ch[first].Write(nil); err != nil {
		return
	}
	st := Streams{TTY: want.GetTty()}
	if want.GetStdin() {
		st.Stdin = ch[stdin]
		if protocol != remotecommand.StreamProtocolV5Name {
			st.Stdin = lastReader{ch[stdin], end}
		}
	}
	if want.GetStdout() {
		st.Stdout = ch[stdout]
	}
	if want.GetStderr() {
		st.Stderr = ch[stderr]
	}
	var resizing sync.WaitGroup
	st.Resize = sizes(r.Context(), ch[resize], &resizing)
	err = run(st)
	if m := statusMessage(protocol, err); len(m) > 0 {
		_, _ = ch[status].Write(m)
	}
	conn.Close()
	resizing.Wait()
}

// lastReader is stdin in a protocol that can't end it alone: its end is that of the session.
type lastReader struct {
	io.Reader
	end func()
}

// Read implements io.Reader.
func (r lastReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	if err != nil {
		r.end()
	}
	return n, err
}

// sizes decodes what the client says of its terminal, until its stream or ctx ends.
func sizes(ctx context.Context, r io.Reader, wg *sync.WaitGroup) <-chan remotecommand.TerminalSize {
	out := make(chan remotecommand.TerminalSize)
	wg.Go(func() {
		defer close(out)
		for d := json.NewDecoder(r); ; {
			var size remotecommand.TerminalSize
			if d.Decode(&size) != nil {
				return
			}
			select {
			case out <- size:
			case <-ctx.Done():
				return
			}
		}
	})
	return out
}

// result is the part of meta/v1's Status that clients look at.
type result struct {
	Status  string   `json:"status"`
	Message string   `json:"message,omitempty"`
	Reason  string   `json:"reason,omitempty"`
	Details *details `json:"details,omitempty"`
	Code    int32    `json:"code,omitempty"`
}

type details struct {
	Causes []cause `json:"causes"`
}

type cause struct {
	Type    string `json:"reason"`
	Message string `json:"message"`
}

// statusMessage tells the client how the session ended.
func statusMessage(protocol string, err error) []byte {
	r := result{Status: "Success"}
	var exit exitError
	switch {
	case errors.As(err, &exit):
		r = result{Status: "Failure", Reason: remotecommand.NonZeroExitCodeReason,
			Message: fmt.Sprintf("command terminated with non-zero exit code: %v", err),
			Details: &details{[]cause{{remotecommand.ExitCodeCauseType, strconv.Itoa(int(exit))}}}}
	case err != nil:
		r = result{Status: "Failure", Reason: "InternalError", Code: http.StatusInternalServerError, Message: err.Error()}
	}
	if !strings.HasPrefix(protocol, "v4.") && !strings.HasPrefix(protocol, "v5.") {
		return []byte(r.Message)
	}
	b, _ := json.Marshal(r)
	return b
}

// serveTunnel lets a client speak SPDY inside a WebSocket, as kubectl port-forward does: the messages' contents, put
// together, are the SPDY connection, which begins without a handshake of its own.
func serveTunnel(w http.ResponseWriter, r *http.Request, forward http.HandlerFunc) {
	var inner string
	handshake := func(c *websocket.Config, _ *http.Request) error {
		for _, p := range c.Protocol {
			if name, ok := strings.CutPrefix(p, "SPDY/3.1+"); ok {
				c.Protocol, inner = []string{p}, name
				return nil
			}
		}
		return errors.New("no tunnelled protocol was offered")
	}
	serve := func(ws *websocket.Conn) {
		ws.PayloadType = websocket.BinaryFrame
		q := r.Clone(r.Context())
		q.Header.Set("Connection", "Upgrade")
		q.Header.Set("Upgrade", spdy.HeaderSpdy31)
		q.Header.Del("Sec-WebSocket-Protocol")
		q.Header.Set("X-Stream-Protocol-Version", inner)
		forward(&tunnel{ws: ws, header: http.Header{}}, q)
	}
	websocket.Server{Handshake: handshake, Handler: serve}.ServeHTTP(w, r)
}
