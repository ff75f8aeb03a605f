package enginetest

import (
	"io"
	"os"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

var ttyTests = []test{
	{"tty/terminal", nil, terminal},
	{"tty/size", nil, terminalSize},
	{"tty/resize", nil, terminalResize},
	{"tty/ctrl-c", nil, ctrlC},
	{"tty/user", nil, terminalUser},
	{"tty/hangup", nil, hangup},
}

func withTerminal(c *specs.Spec) {
	c.Process.Terminal = true
	c.Process.Env = append(c.Process.Env, "TERM=xterm")
}

// console creates a container with a terminal and collects what it prints.
func (s *suite) console(t *testing.T, script string, change ...func(*specs.Spec)) (*box, *os.File) {
	t.Helper()
	b := s.box(t, s.spec(script, append([]func(*specs.Spec){withTerminal}, change...)...)).create()
	return b, b.attach(b.c.Process())
}

// attach reads the process's terminal into b.out.
func (b *box) attach(p engine.Process) *os.File {
	b.t.Helper()
	tty := p.Terminal()
	if tty == nil {
		b.t.Fatal("no terminal")
	}
	b.out.close()
	b.out = &sink{done: make(chan struct{}), r: tty, w: tty}
	go b.out.collect(tty)
	return tty
}

// lines is what the terminal printed, without carriage returns.
func (b *box) lines() string { return strings.ReplaceAll(b.out.String(), "\r", "") }

func (b *box) line(text string) {
	b.t.Helper()
	if !eventually(func() bool { return strings.Contains("\n"+b.lines(), "\n"+text+"\n") }) {
		b.t.Fatalf("no line %q in %q", text, b.lines())
	}
}

func terminal(t *testing.T, s *suite) {
	b, tty := s.console(t, `[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo all; tty; stat -c '%F %t:%T' /dev/console
(echo opened > /dev/tty); sleep 0 & ps -o pid,tty | head -n 2 >/dev/null; echo ready; read x; echo got $x; exit 5`)
	b.start()
	b.line("ready")
	for _, l := range []string{"all", "/dev/pts/0", "opened"} {
		contains(t, "inside", b.lines(), l+"\n")
	}
	contains(t, "/dev/console", b.lines(), "character special file 88:0")
	contains(t, "line ends", b.out.String(), "ready\r\n")
	equal(t, "fds", fdsOf(t, b.pid())[:5], "0 1 2")
	if _, err := io.WriteString(tty, "input\n"); err != nil {
		t.Fatal(err)
	}
	b.line("got input")
	equal(t, "exit code", b.code(), 5)
}

func terminalSize(t *testing.T, s *suite) {
	b, _ := s.console(t, "stty size", func(c *specs.Spec) { c.Process.ConsoleSize = &specs.Box{Height: 33, Width: 111} })
	b.start()
	b.line("33 111")
	equal(t, "exit code", b.code(), 0)
}

func terminalResize(t *testing.T, s *suite) {
	b, tty := s.console(t, "trap 'stty size' WINCH; echo ready; while :; do sleep 0.01; done")
	b.start()
	b.line("ready")
	raw, err := tty.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: 44, Col: 99})
	})
	if err != nil {
		t.Fatal(err)
	}
	b.line("44 99")
}

func ctrlC(t *testing.T, s *suite) {
	b, tty := s.console(t, "trap 'exit 9' INT; echo ready; while :; do sleep 0.01; done")
	b.start()
	b.line("ready")
	if _, err := tty.Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
	equal(t, "exit code", b.code(), 9)
}

func terminalUser(t *testing.T, s *suite) {
	b, _ := s.console(t, "echo x > /dev/tty; stat -c %u /dev/pts/0; : > /dev/stdout && echo reopened", func(c *specs.Spec) {
		c.Process.User = specs.User{UID: 1000, GID: 1000}
		c.Process.Capabilities = &specs.LinuxCapabilities{}
	})
	b.start()
	b.line("1000")
	b.line("reopened")
	equal(t, "exit code", b.code(), 0)
}

// hangup: the end of the terminal ends what it controls.
func hangup(t *testing.T, s *suite) {
	b, tty := s.console(t, "trap 'exit 8' HUP; echo ready; while :; do sleep 0.01; done")
	b.start()
	b.line("ready")
	tty.Close()
	equal(t, "exit code", b.code(), 8)
}
