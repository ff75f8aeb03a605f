package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"time"

	"github.com/creack/pty"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

func (w *walk) execSync() {
	if out := w.crictl("exec", "-s", w.app, "sh", "-c", "echo $WALK; hostname; cat /etc/resolv.conf"); !strings.Contains(out, "on foot") ||
		!strings.Contains(out, "\nwalk\n") || !strings.Contains(out, "nameserver 10.96.0.10") {
		w.t.Errorf("exec -s:\n%s", out)
	}
	// More than any pipe holds, with pauses of the reader's making.
	if got := w.exec(w.app, "head -c 4000000 /dev/zero | tr '\\0' x"); got != strings.Repeat("x", 4000000) {
		w.t.Errorf("ExecSync returned %d bytes of 4000000", len(got))
	}
	if out, err := w.tryCrictl("exec", "-s", w.app, "sh", "-c", "exit 3"); err == nil {
		w.t.Errorf("exit status 3 is no error to crictl: %s", out)
	}
}

func (w *walk) execStdin() {
	c := w.Crictl(w.ctx, "exec", "-i", w.app, "sh", "-c", "wc -c; echo bad >&2; exit 5")
	var stdout, stderr bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(strings.Repeat("x", 1<<20)), &stdout, &stderr
	err := c.Run()
	if strings.TrimSpace(stdout.String()) != "1048576" || !strings.Contains(stderr.String(), "bad\n") || err == nil {
		w.t.Errorf("exec -i: %v\n%s%s", err, stdout.String(), stderr.String())
	}
}

func (w *walk) execTerminal() {
	c := w.Crictl(w.ctx, "exec", "-it", w.app, "sh")
	tty, err := pty.StartWithSize(c, &pty.Winsize{Rows: 33, Cols: 111})
	if err != nil {
		w.t.Fatal(err)
	}
	defer tty.Close()
	if _, err := tty.WriteString("tty; stty size; echo sum $((40+2)); exit 0\n"); err != nil {
		w.t.Fatal(err)
	}
	out := readAll(tty, testns.Patience(20*time.Second))
	if err := c.Wait(); err != nil {
		w.t.Errorf("exec -it: %v", err)
	}
	for _, want := range []string{"/dev/pts/", "33 111", "sum 42"} {
		if !strings.Contains(out, want) {
			w.t.Errorf("exec -it: no %q in:\n%s", want, out)
		}
	}
}

// readAll reads until the end, which a pty reports as EIO, or a deadline.
func readAll(r interface {
	io.Reader
	SetReadDeadline(time.Time) error
}, limit time.Duration) string {
	_ = r.SetReadDeadline(time.Now().Add(limit))
	b, _ := io.ReadAll(r)
	return string(b)
}

func (w *walk) attach() {
	c := w.Crictl(w.ctx, "attach", "-i", w.app)
	stdin, err := c.StdinPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	lines := w.lines(c)
	defer w.endClient(c)
	w.await(lines, "beat ") // attached
	if _, err := fmt.Fprintln(stdin, "over the line"); err != nil {
		w.t.Fatal(err)
	}
	w.await(lines, "read over the line")
}

func (w *walk) logs() {
	if out := w.crictl("logs", "--tail", "5", w.app); !strings.Contains(out, "beat ") {
		w.t.Errorf("logs:\n%s", out)
	}
	if out := w.crictl("logs", w.web); !strings.Contains(out, "serving on port 8080") {
		w.t.Errorf("logs:\n%s", out)
	}
}

func (w *walk) follow() {
	c := w.Crictl(w.ctx, "logs", "-f", "--tail", "1", w.app)
	lines := w.lines(c)
	defer w.endClient(c)
	for range 5 {
		w.await(lines, "beat ")
	}
}

// lines starts a command and sends the lines of its stdout; the channel is closed at the end.
func (w *walk) lines(c *exec.Cmd) <-chan string {
	w.t.Helper()
	out, err := c.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		w.t.Fatal(err)
	}
	lines := make(chan string, 1<<16)
	go func() { // ends with the command
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}()
	return lines
}

func (w *walk) await(lines <-chan string, want string) {
	w.t.Helper()
	timeout := time.After(testns.Patience(15 * time.Second))
	for {
		select {
		case l, ok := <-lines:
			if !ok {
				w.t.Fatalf("the output ended before %q", want)
			}
			if strings.Contains(l, want) {
				return
			}
		case <-timeout:
			w.t.Fatalf("no %q within 15 s", want)
		}
	}
}

func (w *walk) endClient(c *exec.Cmd) {
	_ = c.Process.Kill() // crictl attach doesn't end on SIGTERM
	_ = c.Wait()
}

func (w *walk) portForward() {
	c := w.Crictl(w.ctx, "port-forward", w.pod, "18080:8080")
	lines := w.lines(c)
	defer w.endClient(c)
	w.await(lines, "Forwarding from")
	for range 3 {
		w.get("http://127.0.0.1:18080/", "hello from a pod\n")
	}
	// The pod's host port is another way to the same server.
	w.get("http://127.0.0.1:12080/", "hello from a pod\n")
}

func (w *walk) get(url, want string) {
	w.t.Helper()
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext}}
	r, err := client.Get(url)
	if err != nil {
		w.t.Error(err)
		return
	}
	defer r.Body.Close()
	if b, err := io.ReadAll(r.Body); err != nil || string(b) != want {
		w.t.Errorf("%s: %v %q", url, err, b)
	}
}
