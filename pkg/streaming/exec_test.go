package streaming

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"golang.org/x/net/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// checkStatus looks for the exit code in what the error stream said.
func checkStatus(t *testing.T, got string, structured bool) {
	t.Helper()
	if !structured {
		if !strings.Contains(got, "exit code 7") {
			t.Errorf("status %q", got)
		}
		return
	}
	var r result
	if err := json.Unmarshal([]byte(got), &r); err != nil || r.Status != "Failure" || r.Reason != "NonZeroExitCode" ||
		r.Details == nil || len(r.Details.Causes) != 1 || r.Details.Causes[0] != (cause{"ExitCode", "7"}) {
		t.Errorf("status %q: %v", got, err)
	}
}

func TestExecSPDY(t *testing.T) {
	s, _ := serve(t, Config{})
	for _, protocol := range []string{"channel.k8s.io", "v2.channel.k8s.io", "v3.channel.k8s.io", "v4.channel.k8s.io"} {
		t.Run(protocol, func(t *testing.T) {
			u := execURL(t, s, &runtimeapi.ExecRequest{Cmd: []string{"cat"}, Stdin: true, Stdout: true, Stderr: true})
			st, conn, _ := dialSPDY(t, u, protocol, "error", "stdin", "stdout", "stderr")
			stdout, stderr, status := readAll(st["stdout"]), readAll(st["stderr"]), readAll(st["error"])
			want := strings.Repeat("0123456789\n", 100_000)
			if protocol == "channel.k8s.io" {
				want = "" // v1 servers close stdin at once
			} else if _, err := io.WriteString(st["stdin"], want); err != nil {
				t.Fatal(err)
			}
			st["stdin"].Close() // only this one: half-close
			if got := stdout(t); got != want {
				t.Errorf("stdout: %d bytes of %d", len(got), len(want))
			}
			if got := stderr(t); got != "oops" {
				t.Errorf("stderr %q", got)
			}
			if got := status(t); protocol != "channel.k8s.io" { // v1 servers reset this stream at once, too
				checkStatus(t, got, protocol == "v4.channel.k8s.io")
			}
			<-conn.CloseChan()
		})
	}
}

// receive collects a WebSocket's messages by channel until the connection ends.
func receive(t *testing.T, ws *websocket.Conn, base bool) map[byte]string {
	t.Helper()
	got := map[byte]string{}
	for {
		var m []byte
		if err := websocket.Message.Receive(ws, &m); err != nil {
			return got
		}
		if len(m) == 0 {
			t.Error("message without a channel")
			continue
		}
		ch, data := m[0], string(m[1:])
		if base {
			b, err := base64.StdEncoding.DecodeString(data)
			if err != nil {
				t.Error(err)
			}
			ch, data = ch-'0', string(b)
		}
		got[ch] += data
	}
}

func TestExecWebSocket(t *testing.T) {
	s, _ := serve(t, Config{})
	for protocol, structured := range map[string]bool{
		"": false, "channel.k8s.io": false, "base64.channel.k8s.io": false, "v4.channel.k8s.io": true, "v4.base64.channel.k8s.io": true, "v5.channel.k8s.io": true,
	} {
		t.Run("protocol "+protocol, func(t *testing.T) {
			cmd, in, base := "line", "a line\n", strings.Contains(protocol, "base64")
			if strings.HasPrefix(protocol, "v5") {
				cmd, in = "cat", strings.Repeat("0123456789\n", 100_000)
			}
			ws := dialWebSocket(t, execURL(t, s, &runtimeapi.ExecRequest{Cmd: []string{cmd}, Stdin: true, Stdout: true, Stderr: true}), protocol)
			send := func(channel byte, text string) {
				m := append([]byte{channel}, text...)
				if base {
					m = append([]byte{'0' + channel}, base64.StdEncoding.EncodeToString([]byte(text))...)
				}
				if err := websocket.Message.Send(ws, m); err != nil {
					t.Fatal(err)
				}
			}
			go func() {
				for rest := in; rest != ""; {
					n := min(len(rest), 30_000)
					send(stdin, rest[:n])
					rest = rest[n:]
				}
				if cmd == "cat" {
					send(255, string(rune(stdin))) // v5's close
				}
			}()
			got := receive(t, ws, base)
			if got[stdout] != in {
				t.Errorf("stdout: %d bytes of %d", len(got[stdout]), len(in))
			}
			if cmd == "cat" && got[stderr] != "oops" {
				t.Errorf("stderr %q", got[stderr])
			}
			checkStatus(t, got[status], structured)
		})
	}
}

func TestResize(t *testing.T) {
	s, _ := serve(t, Config{})
	size := `{"Width":111,"Height":33}`
	request := func() *runtimeapi.ExecRequest {
		return &runtimeapi.ExecRequest{Cmd: []string{"size"}, Stdin: true, Stdout: true, Tty: true}
	}
	for _, protocol := range []string{"v3.channel.k8s.io", "v4.channel.k8s.io"} {
		st, _, _ := dialSPDY(t, execURL(t, s, request()), protocol, "error", "stdin", "stdout", "resize")
		if _, err := io.WriteString(st["resize"], size); err != nil {
			t.Fatal(err)
		}
		if got := readAll(st["stdout"])(t); got != "111x33" {
			t.Errorf("SPDY %s: %q", protocol, got)
		}
	}
	for _, protocol := range []string{"v4.channel.k8s.io", "v5.channel.k8s.io"} {
		ws := dialWebSocket(t, execURL(t, s, request()), protocol)
		if err := websocket.Message.Send(ws, append([]byte{resize}, size...)); err != nil {
			t.Fatal(err)
		}
		if got := receive(t, ws, false); got[stdout] != "111x33" || !strings.Contains(got[status], "Success") {
			t.Errorf("WebSocket %s: %q", protocol, got)
		}
	}
}

func TestAttach(t *testing.T) {
	s, _ := serve(t, Config{})
	url := func() string {
		u, err := s.AttachURL(&runtimeapi.AttachRequest{ContainerId: "c", Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	st, _, _ := dialSPDY(t, url(), "v4.channel.k8s.io", "error", "stdin", "stdout")
	if _, err := io.WriteString(st["stdin"], "hello\n"); err != nil {
		t.Fatal(err)
	}
	if got, status := readAll(st["stdout"])(t), readAll(st["error"])(t); got != "hello\n" || !strings.Contains(status, "Success") {
		t.Errorf("%q %q", got, status)
	}
	ws := dialWebSocket(t, url(), "v5.channel.k8s.io")
	if err := websocket.Message.Send(ws, append([]byte{stdin}, "hello\n"...)); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, ws, false); got[stdout] != "hello\n" || !strings.Contains(got[status], "Success") {
		t.Errorf("%q", got)
	}
}

func TestExecFails(t *testing.T) {
	s, _ := serve(t, Config{})
	ws := dialWebSocket(t, execURL(t, s, &runtimeapi.ExecRequest{Cmd: []string{"fail"}, Stdout: true}), "v5.channel.k8s.io")
	if got := receive(t, ws, false); !strings.Contains(got[status], "no such thing") || !strings.Contains(got[status], "InternalError") {
		t.Errorf("%q", got)
	}
	st, _, _ := dialSPDY(t, execURL(t, s, &runtimeapi.ExecRequest{Cmd: []string{"fail"}, Stdout: true}), "v4.channel.k8s.io", "error", "stdout")
	if got := readAll(st["error"])(t); !strings.Contains(got, "no such thing") {
		t.Errorf("%q", got)
	}
}
