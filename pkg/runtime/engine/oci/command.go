package oci

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

const (
	maxLog     = 256 << 10 // bytes of a command's log or output that are looked at
	maxMessage = 2 << 10   // bytes of it that get into an error
)

// invocation is one command of the runtime on one container.
type invocation struct {
	args    []string // the subcommand and what follows it
	dir     string   // working directory; the log is written there too
	timeout time.Duration
	// Stdio of the command; the container's process inherits it from create and exec. A nil stderr is captured.
	stdin, stdout, stderr *os.File
}

// run executes one command to its end and turns its failure into an error with an errdefs kind.
func (e *Engine) run(ctx context.Context, in invocation) error {
	log := filepath.Join(in.dir, fmt.Sprintf("log-%d", e.serial.Add(1)))
	defer os.Remove(log)
	stderr := in.stderr
	if stderr == nil {
		f, err := memfile("stderr")
		if err != nil {
			return err
		}
		defer f.Close()
		stderr = f
	}
	args := append([]string{"--root", e.root, "--log", log, "--log-format", "json"}, e.args...)
	cmd := &reaper.Command{
		Path: e.path, Args: append(args, in.args...), Env: environ(), Dir: in.dir,
		Stdin: in.stdin, Stdout: in.stdout, Stderr: stderr,
	}
	limited, cancel := context.WithTimeout(ctx, in.timeout)
	defer cancel()
	status, err := cmd.Run(limited, e.reaper)
	name := filepath.Base(e.path) + " " + in.args[0]
	switch {
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("%s: %w", name, ctx.Err())
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: not finished after %s%s: %w", name, in.timeout, hint(readLog(log)), context.DeadlineExceeded)
	case err != nil:
		return fmt.Errorf("%s: %w", name, err)
	case status.Code() == 0:
		return nil
	}
	text := readLog(log)
	if text == "" && in.stderr == nil {
		text = tail(readAll(stderr))
	}
	if text == "" {
		text = fmt.Sprintf("exit code %d and no message", status.Code())
	}
	return failure(name, text)
}

// output runs a command that belongs to no container and returns its standard output and exit code.
func (e *Engine) output(ctx context.Context, args ...string) ([]byte, int, error) {
	out, err := memfile("stdout")
	if err != nil {
		return nil, 0, err
	}
	defer out.Close()
	cmd := &reaper.Command{Path: e.path, Args: args, Env: environ(), Dir: "/", Stdout: out}
	status, err := cmd.Run(ctx, e.reaper)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return readAll(out), status.Code(), nil
}

// environ is this process's environment without what would make a runtime talk to our own service manager or pass on
// fds of ours: runc forwards NOTIFY_SOCKET into the container and keeps LISTEN_FDS open there.
func environ() []string {
	var env []string
	for _, kv := range os.Environ() {
		switch name, _, _ := strings.Cut(kv, "="); {
		case name == "NOTIFY_SOCKET", name == "WATCHDOG_USEC", name == "WATCHDOG_PID",
			strings.HasPrefix(name, "LISTEN_"), strings.HasPrefix(name, "_LIBCONTAINER_"):
		default:
			env = append(env, kv)
		}
	}
	return env
}

func memfile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate("oci-"+name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func readAll(f *os.File) []byte {
	b, _ := io.ReadAll(io.NewSectionReader(f, 0, maxLog))
	return b
}

// readLog returns the last error of a JSON log, or "".
func readLog(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	return parseLog(io.LimitReader(f, maxLog))
}

func parseLog(r io.Reader) string {
	var last string
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLog)
	for lines.Scan() {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(lines.Bytes(), &entry) != nil {
			continue
		}
		switch entry.Level {
		case "error", "fatal", "panic", "":
			if entry.Msg != "" {
				last = entry.Msg
			}
		}
	}
	return tail([]byte(last))
}

// tail is the end of a message as one line of bounded size.
func tail(b []byte) string {
	b = bytes.TrimSpace(b)
	if len(b) > maxMessage {
		b = append([]byte("…"), bytes.ToValidUTF8(b[len(b)-maxMessage:], nil)...)
	}
	return strings.Join(strings.Fields(string(b)), " ")
}

func hint(text string) string {
	if text == "" {
		return ""
	}
	return " (" + text + ")"
}

// Messages of runc, crun, youki and runsc, in the order in which they are tried: there is no other channel for the
// kind of an error.
var kinds = []struct {
	text string
	kind error
}{
	{"executable file not found", errdefs.ErrNotFound},
	{"executable file `", errdefs.ErrNotFound},
	{"container does not exist", errdefs.ErrNotFound},
	{"given id already exists", errdefs.ErrAlreadyExists},
	{"id exists", errdefs.ErrAlreadyExists},
	{"` already exists", errdefs.ErrAlreadyExists},
	{"not running", errdefs.ErrFailedPrecondition},
	{"has stopped", errdefs.ErrFailedPrecondition},
	{"cannot exec in a stopped", errdefs.ErrFailedPrecondition},
	{"cannot exec in a paused", errdefs.ErrFailedPrecondition},
	{"not in the created state", errdefs.ErrFailedPrecondition},
	{"permission denied", errdefs.ErrPermissionDenied},
	{"\": is a directory", errdefs.ErrPermissionDenied}, // as the program: execve(2) has EACCES for that
	{"operation not permitted", errdefs.ErrPermissionDenied},
	{"no such file or directory", errdefs.ErrNotFound},
	{"not a directory", errdefs.ErrInvalidArgument},
	{"exec format error", errdefs.ErrInvalidArgument},
	{"unknown capability", errdefs.ErrInvalidArgument},
	{"invalid argument", errdefs.ErrInvalidArgument},
	{"no space left on device", errdefs.ErrResourceExhausted},
	{"cannot allocate memory", errdefs.ErrResourceExhausted},
}

func failure(name, text string) error {
	low := strings.ToLower(text)
	for _, k := range kinds {
		if strings.Contains(low, k.text) {
			return fmt.Errorf("%s: %s: %w", name, text, k.kind)
		}
	}
	return fmt.Errorf("%s: %s", name, text)
}
