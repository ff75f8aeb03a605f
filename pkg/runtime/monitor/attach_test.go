package monitor

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

// client is the far end of an attachment.
type client struct {
	t       testing.TB
	in, out *os.File
	a       *Attachment
}

func (n *node) attach(id string, input bool) *client {
	n.t.Helper()
	req := &AttachRequest{ID: id}
	c := &client{t: n.t}
	var err error
	if input {
		if req.Stdin, c.in, err = os.Pipe(); err != nil {
			n.t.Fatal(err)
		}
		defer req.Stdin.Close()
	}
	if c.out, req.Stdout, err = os.Pipe(); err != nil {
		n.t.Fatal(err)
	}
	defer req.Stdout.Close()
	if c.a, err = n.Attach(n.t.Context(), req); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		c.a.Close()
		c.out.Close()
		if c.in != nil {
			c.in.Close()
		}
	})
	return c
}

// expect reads until text has come.
func (c *client) expect(text string) {
	c.t.Helper()
	var got []byte
	b := make([]byte, 4096)
	_ = c.out.SetReadDeadline(time.Now().Add(testns.Patience(10 * time.Second)))
	for !bytes.Contains(got, []byte(text)) {
		n, err := c.out.Read(b)
		got = append(got, b[:n]...)
		if err != nil {
			c.t.Fatalf("got %q, then %v, instead of %q", got, err, text)
		}
	}
}

func (c *client) rest() string {
	c.t.Helper()
	_ = c.out.SetReadDeadline(time.Now().Add(testns.Patience(20 * time.Second)))
	b, err := io.ReadAll(c.out)
	if err != nil {
		c.t.Error(err)
	}
	return string(b)
}

func (c *client) send(text string) {
	c.t.Helper()
	if _, err := c.in.WriteString(text); err != nil {
		c.t.Fatal(err)
	}
}

func TestAttach(t *testing.T) {
	n := newNode(t)
	req := n.request("c", `while read l; do echo "got $l"; done; echo bye`)
	req.Stdin = true
	n.run(req)
	one, two := n.attach("c", true), n.attach("c", true)
	watcher := n.attach("c", false)
	one.send("a\n")
	one.expect("got a\n")
	two.expect("got a\n")
	two.send("b\n")
	watcher.expect("got b\n")
	one.in.Close() // half closed: output goes on, and so does the container's stdin
	two.send("c\n")
	one.expect("got c\n")
	two.a.Close()
	late := n.attach("c", true)
	late.send("d\n")
	late.expect("got d\n")
	if err := n.Kill(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*client{one, late, watcher} {
		c.rest()
		if err := c.a.Wait(t.Context()); err != nil {
			t.Error(err)
		}
	}
	n.stopped("c")
	if _, err := n.Attach(t.Context(), &AttachRequest{ID: "c"}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("attach after the end: %v", err)
	}
}

func TestStdinOnce(t *testing.T) {
	n := newNode(t)
	for _, how := range []string{"eof", "close"} {
		req := n.request(how, `cat; echo end`)
		req.Stdin, req.StdinOnce = true, true
		n.run(req)
		c := n.attach(how, true)
		c.send("hello\n")
		c.expect("hello\n")
		if how == "eof" {
			c.in.Close()
			if got := c.rest(); got != "end\n" {
				t.Errorf("rest %q", got)
			}
		} else {
			c.a.Close()
		}
		n.stopped(how)
		if out, _ := n.output(how); out != "hello\nend\n" {
			t.Errorf("log %q", out)
		}
	}
}

// TestBigInput sends more than the container takes at once.
func TestBigInput(t *testing.T) {
	n := newNode(t)
	req := n.request("c", `sleep 0.2; wc -c`)
	req.Stdin, req.StdinOnce = true, true
	n.run(req)
	c := n.attach("c", true)
	c.send(strings.Repeat("0123456789", 300_000))
	c.in.Close()
	if got := strings.TrimSpace(c.rest()); got != "3000000" {
		t.Errorf("the container got %q bytes", got)
	}
}

// TestSlowAttachment does not read: neither the container nor its log may wait for that.
func TestSlowAttachment(t *testing.T) {
	n := newNode(t)
	mkfifo(t, filepath.Join(n.dir, "go"))
	n.run(n.request("c", `read go < `+filepath.Join(n.dir, "go")+`; head -c 8000000 /dev/zero | tr '\0' '\n'; echo done`))
	slow := n.attach("c", false)
	if err := os.WriteFile(filepath.Join(n.dir, "go"), []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.stopped("c")
	if err := slow.a.Wait(t.Context()); !errdefs.IsResourceExhausted(err) {
		t.Errorf("slow attachment: %v", err)
	}
	if out, _ := n.output("c"); len(out) != 8_000_005 {
		t.Errorf("log has %d bytes", len(out))
	}
}

func TestTerminal(t *testing.T) {
	n := newNode(t)
	req := n.request("c", `stty -echo; while read l; do case $l in size) stty size;; *) echo "got $l"; esac; done`)
	req.Spec.Process.Terminal, req.Stdin = true, true
	if _, err := n.Create(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	c := n.attach("c", true)
	if st, err := n.Start(t.Context(), "c"); err != nil || !st.TTY {
		t.Fatal(st, err)
	}
	c.send("x\n")
	c.expect("got x\r\n")
	if err := n.Resize(t.Context(), "c", 101, 37); err != nil {
		t.Fatal(err)
	}
	c.send("size\n")
	c.expect("37 101\r\n")
	c.send("\x04")
	c.rest()
	if st := n.stopped("c"); st.ExitCode != 0 {
		t.Errorf("%+v", st)
	}
	if out, _ := n.output("c"); !strings.HasSuffix(out, "got x\r\n37 101\r\n") {
		t.Errorf("log %q", out)
	}
	n.run(n.request("d", "sleep 100"))
	if err := n.Resize(t.Context(), "d", 1, 1); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("resize without a terminal: %v", err)
	}
}

func mkfifo(t testing.TB, path string) {
	t.Helper()
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
}
