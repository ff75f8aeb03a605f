package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// sessionTime is how long a line may take there and back before the session counts as stuck.
const sessionTime = time.Minute

// session is an exec or an attachment through the streaming server, with crictl as the client, to a program that sends back
// what it gets.
type session struct {
	name    string
	client  *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	said    *strings.Builder // what crictl complains of
	lines   int
	longest time.Duration // of a line, there and back
}

func (l *load) openPipe(ctx context.Context, name string, args ...string) (*session, error) {
	s := &session{name: name, client: l.n.Crictl(ctx, args...), said: &strings.Builder{}}
	s.client.Stderr = s.said
	var out io.ReadCloser
	var err error
	if s.in, err = s.client.StdinPipe(); err == nil {
		out, err = s.client.StdoutPipe()
	}
	if err == nil {
		err = s.client.Start()
	}
	s.out = bufio.NewReader(out)
	return s, err
}

// openTerminal is for a command that tells when its terminal is as it wants it.
func (l *load) openTerminal(ctx context.Context, name string, args ...string) (*session, error) {
	s := &session{name: name, client: l.n.Crictl(ctx, args...), said: &strings.Builder{}}
	tty, err := pty.Start(s.client)
	if err != nil {
		return nil, err
	}
	s.in, s.out = tty, bufio.NewReader(tty)
	line, err := s.read(ctx)
	if err != nil || !strings.Contains(line, "ready") {
		return nil, fmt.Errorf("%s: %q: %w", name, line, err)
	}
	return s, nil
}

func (s *session) line(n int) string {
	return fmt.Sprintf("%s %d %s\n", s.name, n, strings.Repeat("abcdefg", n%100))
}

// talk sends lines, each when the one before has come back, until ended is closed.
func (s *session) talk(ctx context.Context, ended <-chan struct{}) error {
	for {
		select {
		case <-ended:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		began, want := time.Now(), s.line(s.lines)
		if _, err := io.WriteString(s.in, want); err != nil {
			return fmt.Errorf("write: %w: %s", err, s.said)
		}
		got, err := s.read(ctx)
		if err != nil || got != want {
			return fmt.Errorf("%.80q came back instead of %.80q: %w: %s", got, want, err, s.said)
		}
		s.lines++
		s.longest = max(s.longest, time.Since(began))
	}
}

// read returns the next line, unless it takes too long.
func (s *session) read(ctx context.Context) (string, error) {
	defer context.AfterFunc(ctx, func() { _ = s.client.Process.Kill() })()
	timer := time.AfterFunc(sessionTime, func() { _ = s.client.Process.Kill() })
	defer timer.Stop()
	return s.out.ReadString('\n')
}

// close ends the session; the exec's or container's end is not waited for.
func (s *session) close() error {
	_ = s.client.Process.Kill()
	err := s.client.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) || errors.Is(err, unix.ECHILD) { // ReapOrphans was first: one with a terminal leads a session
		err = nil
	}
	if e := s.in.Close(); e != nil && !errors.Is(e, os.ErrClosed) {
		err = errors.Join(err, e)
	}
	return err
}
