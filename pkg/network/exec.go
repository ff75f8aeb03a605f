package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/network/embedded"
)

// embeddedPath is the path, as libcni sees it, of plugins that run in process.
const embeddedPath = "embedded:"

// Limits on what a plugin may write, in bytes.
const (
	maxStdout = 1 << 20
	maxStderr = 64 << 10
)

// executor runs plugins for libcni: ours in process, others as programs with a deadline.
type executor struct {
	version.PluginDecoder
	timeout time.Duration
	binDirs []string
	log     *slog.Logger

	plugins *embedded.Plugins
	types   []string // that run in process
}

var _ invoke.Exec = (*executor)(nil)

// embed lets plugins run in process; without it all are programs.
func (x *executor) embed(p *embedded.Plugins, mode string, external []string) {
	x.plugins = p
	if mode != ModeEmbedded {
		p.External = external
	}
	for _, t := range embedded.Types {
		if mode == ModeEmbedded || !slices.Contains(external, t) {
			x.types = append(x.types, t)
		}
	}
	p.Delegate = func(ctx context.Context, plugin string, c embedded.Call, stdin []byte) ([]byte, error) {
		path, err := x.find(plugin, x.binDirs)
		if err != nil {
			return nil, err
		}
		args := &invoke.Args{Command: c.Command, ContainerID: c.ContainerID, NetNS: c.NetNS, PluginArgsStr: c.Args,
			IfName: c.IfName, Path: c.Path}
		return x.program(ctx, path, stdin, args.AsEnv())
	}
}

// FindInPath implements invoke.Exec.
func (x *executor) FindInPath(plugin string, paths []string) (string, error) {
	if slices.Contains(x.types, plugin) {
		return embeddedPath + plugin, nil
	}
	return x.find(plugin, paths)
}

func (x *executor) find(plugin string, paths []string) (string, error) {
	path, err := invoke.FindInPath(plugin, paths)
	if err != nil {
		return "", fmt.Errorf("CNI plugin %q is not in %s: %w", plugin, strings.Join(paths, ", "), errdefs.ErrNotFound)
	}
	return path, nil
}

// ExecPlugin implements invoke.Exec. What the embedded plugin can't do goes to the program of its name, if there is one.
func (x *executor) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	plugin, ok := strings.CutPrefix(path, embeddedPath)
	if !ok {
		return x.program(ctx, path, stdin, environ)
	}
	if embedded.Unsupported(plugin, stdin) != nil {
		if path, err := x.find(plugin, x.binDirs); err == nil {
			return x.program(ctx, path, stdin, environ)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, x.timeout)
	defer cancel()
	return x.plugins.Run(ctx, plugin, call(environ), stdin)
}

func call(environ []string) embedded.Call {
	var c embedded.Call
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		switch k {
		case "CNI_COMMAND":
			c.Command = v
		case "CNI_CONTAINERID":
			c.ContainerID = v
		case "CNI_NETNS":
			c.NetNS = v
		case "CNI_IFNAME":
			c.IfName = v
		case "CNI_ARGS":
			c.Args = v
		case "CNI_PATH":
			c.Path = v
		}
	}
	return c
}

// program runs a plugin that is a program, in a process group of its own which is killed at the deadline.
func (x *executor) program(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	name := filepath.Base(path)
	ctx, cancel := context.WithTimeout(ctx, x.timeout)
	defer cancel()
	var stdout, stderr capped
	run := func() error {
		stdout, stderr = capped{max: maxStdout}, capped{max: maxStderr}
		c := exec.CommandContext(ctx, path)
		c.Env, c.Stdin, c.Stdout, c.Stderr = environ, bytes.NewReader(stdin), &stdout, &stderr
		c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		c.Cancel = func() error { return unix.Kill(-c.Process.Pid, unix.SIGKILL) }
		c.WaitDelay = 2 * time.Second // for grandchildren that keep the pipes
		return c.Run()
	}
	err := run()
	for try := 0; errors.Is(err, unix.ETXTBSY) && try < 5; try++ { // it is just being installed
		select {
		case <-time.After(time.Second):
			err = run()
		case <-ctx.Done():
		}
	}
	command := call(environ).Command
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("CNI plugin %s (%s) did not end in time and was killed: %w%s", name, command, ctx.Err(), stderr.quote())
	case err != nil:
		return nil, pluginError(name, command, err, &stdout, &stderr)
	case stdout.over:
		return nil, fmt.Errorf("CNI plugin %s (%s) wrote more than %d bytes: %w", name, command, maxStdout, errdefs.ErrFailedPrecondition)
	}
	if stderr.buf.Len() > 0 {
		x.log.Debug("CNI plugin wrote", "plugin", name, "command", command, "stderr", stderr.buf.String())
	}
	return stdout.buf.Bytes(), nil
}

// pluginError reads the error that a plugin prints (CNI spec, "Error").
func pluginError(name, command string, err error, stdout, stderr *capped) error {
	var e types.Error
	if json.Unmarshal(stdout.buf.Bytes(), &e) == nil && e.Msg != "" {
		msg := e.Msg
		if e.Details != "" {
			msg += ": " + e.Details
		}
		return fmt.Errorf("CNI plugin %s (%s): %s (code %d): %w", name, command, short(msg), e.Code, errdefs.ErrFailedPrecondition)
	}
	what := ""
	if stdout.buf.Len() > 0 {
		what = fmt.Sprintf(", and its output is no CNI error: %q", short(stdout.buf.String()))
	}
	return fmt.Errorf("CNI plugin %s (%s): %w%s%s", name, command, err, what, stderr.quote())
}

// short cuts what a plugin said to what fits a message.
func short(s string) string {
	if len(s) > 1000 {
		return s[:1000] + "…"
	}
	return s
}

// capped keeps the first max bytes written to it. (It hides the buffer's ReadFrom, which would know no bound.)
type capped struct {
	buf  bytes.Buffer
	max  int
	over bool
}

func (c *capped) Write(p []byte) (int, error) {
	if room := c.max - c.buf.Len(); len(p) > room {
		c.over = true
		c.buf.Write(p[:room])
	} else {
		c.buf.Write(p)
	}
	return len(p), nil
}

func (c *capped) quote() string {
	if c.buf.Len() == 0 {
		return ""
	}
	return fmt.Sprintf("; it said %q", short(strings.TrimSpace(c.buf.String())))
}
