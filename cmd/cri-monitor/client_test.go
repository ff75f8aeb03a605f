package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// runClient is another cri-server: it holds an exec and an attachment, tells the exec's pid, and waits to be killed.
func runClient() {
	ctx := context.Background()
	c, err := monitor.Dial(ctx, os.Getenv(clientEnv))
	fatal(err)
	x, err := c.Exec(ctx, &monitor.ExecRequest{ID: "c", Process: &specs.Process{Args: []string{"/bin/sleep", "1000"}, Cwd: "/"}})
	fatal(err)
	in, w, err := os.Pipe()
	fatal(err)
	_, err = c.Attach(ctx, &monitor.AttachRequest{ID: "c", Stdin: in, Stdout: os.Stderr})
	fatal(err)
	_, err = w.WriteString("from the client\n")
	fatal(err)
	fmt.Println(x.Pid)
	_, _ = x.Wait(ctx)
}

func fatal(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// TestClientKilled kills a client during Exec and Attach: the exec dies, the container doesn't, and the next client
// finds all as it was.
func TestClientKilled(t *testing.T) {
	n := newNode(t)
	req := n.request("c", `while read l; do echo "got $l"; done; echo end`)
	req.Stdin = true
	before := n.run(req)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), clientEnv+"="+n.cfg.Socket)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(n.dir, "c.log")
	logged := func(text string) func() bool {
		return func() bool { b, _ := os.ReadFile(log); return strings.Contains(string(b), text) }
	}
	eventually(t, "the client's input has arrived", logged("got from the client\n"))
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	eventually(t, "the exec has ended", func() bool { return !alive(pid) })
	next, err := monitor.Dial(t.Context(), n.cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if st, err := next.State(t.Context(), "c"); err != nil || st != before {
		t.Errorf("%+v %v, was %+v", st, err, before)
	}
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	a, err := next.Attach(t.Context(), &monitor.AttachRequest{ID: "c", Stdin: in})
	in.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	_, _ = w.WriteString("again\n")
	eventually(t, "stdin is still open", logged("got again\n"))
}
