package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// A client that goes takes its exec with it, and all that it started.
func TestExecClientGoes(t *testing.T) {
	f := start(t, testnode.Options{})
	pod, c := f.idle("gone")
	w := &walk{fixture: f}
	for _, terminal := range []bool{false, true} {
		script := []string{c, "sh", "-c", "(setsid sleep 7771 &); echo began; sleep 7771"}
		if terminal {
			client := f.Crictl(f.ctx, append([]string{"exec", "-it"}, script...)...)
			tty, err := pty.Start(client)
			if err != nil {
				t.Fatal(err)
			}
			if line, err := bufio.NewReader(tty).ReadString('\n'); !strings.Contains(line, "began") {
				t.Errorf("%q %v", line, err)
			}
			w.endClient(client)
			tty.Close()
		} else {
			client := f.Crictl(f.ctx, append([]string{"exec", "-i"}, script...)...)
			if _, err := client.StdinPipe(); err != nil {
				t.Fatal(err)
			}
			w.await(w.lines(client), "began")
			w.endClient(client)
		}
		f.eventually("the exec's processes end", func() bool {
			return strings.TrimSpace(f.exec(c, "ps -o args | grep '[s]leep 7771'; true")) == ""
		})
	}
	f.removePod(pod)
}

// 200 MB through port-forward and back, both ways at once, to a port that only listens on IPv6.
func TestPortForwardBulk(t *testing.T) {
	f := start(t, testnode.Options{})
	pod, c := f.idle("bulk", func(p *cri.PodSandboxConfig) { p.Linux.Sysctls = map[string]string{"net.ipv6.bindv6only": "1"} })
	f.exec(c, "nc -ll -p 9000 -e cat >/dev/null 2>&1 & for i in 1 2 3 4 5 6 7 8 9; do grep -q ':2328 ' /proc/net/tcp6 && exit 0; sleep 1; done; exit 1")
	if got := f.exec(c, "grep -c ':2328 ' /proc/net/tcp; true"); strings.TrimSpace(got) != "0" {
		t.Fatalf("it listens on IPv4 too: %q", got)
	}
	w := &walk{fixture: f}
	for port, args := range map[string][]string{"18081": nil, "18082": {"--transport", "websocket"}} {
		client := f.Crictl(f.ctx, append(append([]string{"port-forward"}, args...), pod, port+":9000")...)
		w.await(w.lines(client), "Forwarding from")
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
		const size = 200_000_000
		sent, got := sha256.New(), sha256.New()
		go func() {
			_, _ = io.Copy(conn, io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{7}), size), sent))
			_ = conn.(*net.TCPConn).CloseWrite()
		}()
		n, err := io.Copy(got, conn)
		if err != nil || n != size || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
			t.Errorf("%v: %d bytes of %d came back: %v", args, n, size, err)
		}
		conn.Close()
		w.endClient(client)
	}
	f.removePod(pod)
}

// ContainerConfig.stdin_once: the container's stdin ends with the first client that was attached; else it stays.
func TestStdinOnce(t *testing.T) {
	f := start(t, testnode.Options{})
	pod, _ := f.idle("stdin")
	p := f.podConfig("stdin")
	for _, once := range []bool{true, false} {
		config := containerConfig(map[bool]string{true: "once", false: "stays"}[once], "e2e-test-images/busybox:1.29-2", "sh", "-c", "while read l; do echo got $l; done; echo end")
		config.Stdin, config.StdinOnce = true, once
		c := f.runContainer(pod, p, config)
		for _, word := range []string{"one", "two"} {
			client := f.Crictl(f.ctx, "attach", "-i", c)
			stdin, err := client.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			w := &walk{fixture: f}
			lines := w.lines(client)
			if _, err := io.WriteString(stdin, word+"\n"); err != nil {
				t.Fatal(err)
			}
			w.await(lines, "got "+word)
			stdin.Close()
			w.endClient(client)
			if once {
				break
			}
		}
		state := func() cri.ContainerState {
			s, err := f.Runtime.ContainerStatus(f.ctx, &cri.ContainerStatusRequest{ContainerId: c})
			if err != nil {
				t.Fatal(err)
			}
			return s.Status.State
		}
		if once {
			f.eventually("the container ends with its stdin", func() bool { return state() == cri.ContainerState_CONTAINER_EXITED })
		} else if s := state(); s != cri.ContainerState_CONTAINER_RUNNING {
			t.Errorf("stdin was not to end: %s", s)
		}
	}
	f.removePod(pod)
}

// 100 execs by a client leave nothing in the server.
func TestSessionsLeaveNothing(t *testing.T) {
	f := start(t, testnode.Options{})
	pod, c := f.idle("sessions")
	run := func() {
		if out := f.crictl("exec", c, "echo", "hello"); out != "hello\n" {
			t.Fatalf("%q", out)
		}
	}
	for range 20 {
		run()
	}
	fds, threads := f.openFiles()
	for range 100 {
		run()
	}
	f.eventually("descriptors are closed", func() bool {
		a, b := f.openFiles()
		return a <= fds+3 && b <= threads+6
	})
	f.removePod(pod)
}
