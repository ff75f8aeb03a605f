package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// kubectl is a command that ends with the test at the latest.
func (r *run) kubectl(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, "kubectl", append([]string{"--kubeconfig", etc + "/admin.conf"}, args...)...)
	c.Env = append(os.Environ(), "HOME=/tmp", "KUBECTL_KUBERC=false")
	c.WaitDelay = 5 * time.Second
	return c
}

// k runs kubectl and returns what it wrote to stdout; stderr is part of the error.
func (r *run) k(args ...string) (string, error) { return r.fed("", args...) }

// fed gives kubectl a standard input.
func (r *run) fed(input string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(r.ctx, 2*time.Minute)
	defer cancel()
	c := r.kubectl(ctx, args...)
	var out, problems bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(input), &out, &problems
	if err := c.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %.200s: %w: %.600s", strings.Join(args, " "), err, strings.TrimSpace(problems.String()))
	}
	return out.String(), nil
}

// ks runs kubectl commands, given as lines, one after another.
func (r *run) ks(lines ...string) error {
	for _, l := range lines {
		if _, err := r.k(strings.Fields(l)...); err != nil {
			return err
		}
	}
	return nil
}

// apply creates or changes objects.
func (r *run) apply(yaml string) error {
	_, err := r.fed(yaml, "apply", "-f", "-")
	return err
}

// ready waits for pods.
func (r *run) ready(names ...string) error {
	args := []string{"wait", "--for=condition=Ready", "--timeout=90s"}
	for _, n := range names {
		args = append(args, "pod/"+n)
	}
	_, err := r.k(args...)
	if err != nil {
		for _, n := range names {
			text, _ := r.k("describe", "pod", n)
			err = fmt.Errorf("%w\n%s", err, text[max(0, len(text)-2000):])
		}
	}
	return err
}

// matches compares the whole of a text, without the space around it, with a regular expression.
func matches(text, want string) error {
	if !regexp.MustCompile(`^(?s:` + want + `)$`).MatchString(strings.TrimSpace(text)) {
		return fmt.Errorf("%.500q is not %q", strings.TrimSpace(text), want)
	}
	return nil
}

// says runs kubectl, given as a line, and compares what it writes. A jsonpath is the rest of the line.
func (r *run) says(want, line string, more ...string) error {
	line, path, ok := strings.Cut(line, "-o jsonpath=")
	args := append(strings.Fields(line), more...)
	if ok {
		args = append(args, "-o", "jsonpath="+path)
	}
	out, err := r.k(args...)
	if err == nil {
		if err = matches(out, want); err != nil {
			err = fmt.Errorf("kubectl %s: %w", line, err)
		}
	}
	return err
}

// becomes waits until kubectl says something.
func (r *run) becomes(want, line string, more ...string) error {
	return r.until(soon, func(r *run) error { return r.says(want, line, more...) })
}

// inside runs a shell command in a container and compares its output; of is a pod, or "pod -c container".
func (r *run) inside(of, script, want string) error {
	return r.says(want, "exec "+of+" --", "sh", "-c", script)
}

// code is the exit status of an error of kubectl.
func code(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}

// terminal runs kubectl at a terminal of its own. What is typed into it, and awaited from it, is up to talk.
func (r *run) terminal(talk func(*tty) error, args ...string) error {
	ctx, cancel := context.WithTimeout(r.ctx, 2*time.Minute)
	defer cancel()
	master, slave, err := openPty()
	if err != nil {
		return err
	}
	defer master.Close()
	c := r.kubectl(ctx, args...)
	c.Stdin, c.Stdout, c.Stderr = slave, slave, slave
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	t := &tty{master: master, process: c}
	if err := t.size(40, 132); err != nil {
		return err
	}
	err = c.Start()
	_ = slave.Close()
	if err != nil {
		return err
	}
	if err := talk(t); err != nil {
		cancel()
		_ = c.Wait()
		return err
	}
	rest := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, master); close(rest) }() // ends when kubectl has closed the terminal
	err = c.Wait()
	<-rest
	return err
}

func openPty() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	n, err1 := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	err2 := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	if err := errors.Join(err1, err2); err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	return master, slave, nil
}

// tty is the terminal of a kubectl.
type tty struct {
	master  *os.File
	process *exec.Cmd
	seen    []byte // and not yet awaited
}

func (t *tty) size(rows, columns uint16) error {
	err := unix.IoctlSetWinsize(int(t.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	return err
}

func (t *tty) send(text string) error { _, err := t.master.WriteString(text); return err }

// await reads until a text comes. kubectl's own deadline, which closes the terminal, ends it too.
func (t *tty) await(text string) error {
	buf := make([]byte, 4096)
	for {
		if _, after, ok := bytes.Cut(t.seen, []byte(text)); ok {
			t.seen = after
			return nil
		}
		n, err := t.master.Read(buf)
		t.seen = append(t.seen, buf[:n]...)
		if err != nil {
			return fmt.Errorf("instead of %q came %q: %w", text, t.seen, err)
		}
	}
}
