package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

// Hooks get a bundle like that of an OCI runtime: config.json, and the root file system at bundleRoot, where it is seen
// in the container's mount namespace until pivot_root.
const (
	bundleRoot   = "rootfs"
	bundleConfig = "config.json"
)

// hookTimeout bounds a hook that has no timeout of its own.
const hookTimeout = 2 * time.Minute

func hooks(spec *specs.Spec) specs.Hooks {
	if spec.Hooks == nil {
		return specs.Hooks{}
	}
	return *spec.Hooks
}

// prestart hooks are deprecated, but not gone.
func prestart(h specs.Hooks) []specs.Hook {
	return h.Prestart //lint:ignore SA1019 the spec still asks for them
}

func hasHooks(spec *specs.Spec) bool {
	h := hooks(spec)
	return len(prestart(h))+len(h.CreateRuntime)+len(h.CreateContainer)+len(h.StartContainer)+len(h.Poststart)+len(h.Poststop) > 0
}

// makeBundle writes the bundle, for a spec with hooks.
func makeBundle(dir string, spec *specs.Spec) error {
	if !hasHooks(spec) {
		return nil
	}
	copied := *spec
	root := specs.Root{}
	if spec.Root != nil {
		root = *spec.Root
	}
	root.Path = filepath.Join(dir, bundleRoot)
	copied.Root = &root
	b, err := json.Marshal(&copied)
	if err != nil {
		return err
	}
	if err := os.Mkdir(root.Path, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, bundleConfig), b, 0o600)
}

func removeBundle(dir string, spec *specs.Spec) error {
	if !hasHooks(spec) {
		return nil
	}
	var errs []error
	for _, name := range []string{bundleConfig, bundleRoot} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// state is what a hook reads from its standard input: a file, so that nobody has to feed a pipe.
func state(spec *specs.Spec, id, dir string, status specs.ContainerState, pid int) (*os.File, error) {
	b, err := json.Marshal(specs.State{Version: specs.Version, ID: id, Status: status, Pid: pid, Bundle: dir, Annotations: spec.Annotations})
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("state", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "state")
	if _, err = f.Write(b); err == nil {
		_, err = f.Seek(0, 0)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func hookContext(ctx context.Context, h specs.Hook) (context.Context, context.CancelFunc) {
	d := hookTimeout
	if h.Timeout != nil && *h.Timeout > 0 {
		d = time.Duration(*h.Timeout) * time.Second
	}
	return context.WithTimeout(ctx, d)
}

// maxHookOutput is how much of a failed hook's output is put into the error.
const maxHookOutput = 1024

// hookOutput is a file that a hook may write to.
func hookOutput() (*os.File, error) {
	fd, err := unix.MemfdCreate("hook", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "hook"), nil
}

// withOutput adds the end of what a hook has written to its error.
func withOutput(err error, out *os.File) error {
	st, statErr := out.Stat()
	if err == nil || statErr != nil {
		return err
	}
	b := make([]byte, maxHookOutput)
	n, _ := out.ReadAt(b, max(0, st.Size()-maxHookOutput))
	if text := strings.TrimSpace(string(b[:n])); text != "" {
		return fmt.Errorf("%w: %q", err, text)
	}
	return err
}

// runOnHost runs a hook in the engine's own namespaces.
func (e *Engine) runOnHost(ctx context.Context, h specs.Hook, stdin *os.File) error {
	ctx, cancel := hookContext(ctx, h)
	defer cancel()
	out, err := hookOutput()
	if err != nil {
		return err
	}
	defer out.Close()
	args := h.Args
	if len(args) == 0 {
		args = []string{h.Path}
	}
	pidfd := -1
	attr := &syscall.ProcAttr{Dir: "/", Env: append([]string{}, h.Env...), Files: []uintptr{stdin.Fd(), out.Fd(), out.Fd()},
		Sys: &syscall.SysProcAttr{PidFD: &pidfd, Setsid: true}}
	var child *reaper.Child
	err = onThread(func() (err error) { // see package reaper
		child, err = e.reaper.Fork(func() (int, error) { return syscall.ForkExec(h.Path, args, attr) })
		return err
	})
	if err != nil {
		return classify(err)
	}
	p := &process{child: child, pidfd: pidfd}
	defer p.close()
	return withOutput(p.awaitHook(ctx), out)
}

// awaitHook waits for a hook's success, and kills it when ctx ends first.
func (p *process) awaitHook(ctx context.Context) error {
	st, err := p.child.Wait(ctx)
	if err != nil {
		_ = p.Signal(unix.SIGKILL)
		awaitEnd(p.child)
		return err
	}
	if st.Code() != 0 {
		return fmt.Errorf("exit code %d", st.Code())
	}
	return nil
}

// hostHooks runs a list of hooks in the engine's own namespaces, up to the first that fails.
func (c *container) hostHooks(ctx context.Context, name string, status specs.ContainerState, list []specs.Hook) error {
	for _, h := range list {
		in, err := state(c.spec, c.id, c.dir, status, c.init.Pid())
		if err != nil {
			return err
		}
		err = c.engine.runOnHost(ctx, h, in)
		in.Close()
		if err != nil {
			return fmt.Errorf("%s hook %s: %w", name, h.Path, err)
		}
	}
	return nil
}

// poststop runs all hooks, whatever becomes of each.
func (c *container) poststop(ctx context.Context) {
	for _, h := range hooks(c.spec).Poststop {
		if err := c.hostHooks(ctx, "poststop", specs.StateStopped, []specs.Hook{h}); err != nil {
			slog.WarnContext(ctx, "hook failed", "container", c.id, "error", err)
		}
	}
}

// createHooks runs prestart and createRuntime hooks in the engine's namespaces and createContainer hooks in the
// container's, before pivot_root.
func (b *builder) createHooks() error {
	h := hooks(b.spec)
	if len(prestart(h))+len(h.CreateRuntime)+len(h.CreateContainer) == 0 {
		return nil
	}
	c := &container{engine: b.engine, id: b.config.ID, dir: b.config.Dir, spec: b.spec, cgroup: b.config.Cgroup.Pack(),
		joins: b.ns.all(), ids: b.ids, init: &process{child: b.stub.child, pidfd: b.stub.pidfd}}
	defer func() {
		for _, p := range c.execs {
			p.close()
		}
	}()
	return elsewhere(func() error {
		if err := c.hostHooks(b.ctx, "prestart", specs.StateCreating, prestart(h)); err != nil {
			return err
		}
		if err := c.hostHooks(b.ctx, "createRuntime", specs.StateCreating, h.CreateRuntime); err != nil {
			return err
		}
		for _, hook := range h.CreateContainer {
			if err := c.hookInside(b.ctx, "createContainer", specs.StateCreating, hook, b.engine.root(b.config.Dir), nil); err != nil {
				return err
			}
		}
		return nil
	})
}

// root is the identity of a createContainer hook: root of the container's user namespace with all that this process
// may have.
func (e *Engine) root(cwd string) *identity {
	return &identity{umask: 0o022, cwd: cwd, bounding: e.caps, permitted: e.caps, effective: e.caps}
}

// startHooks runs the startContainer hooks as the container's process would run them.
func (c *container) startHooks(ctx context.Context, p *pending) error {
	for _, h := range hooks(c.spec).StartContainer {
		id, err := newIdentity(p.spec.Process, p.filter, p.spec.Linux.Seccomp)
		if err != nil {
			return err
		}
		if err := id.common(c.id, c.spec.Linux); err != nil {
			return err
		}
		if err := c.hookInside(ctx, "startContainer", specs.StateCreated, h, id, p.filter); err != nil {
			return err
		}
	}
	return nil
}

// hookInside runs a hook in the container's namespaces, like an exec session.
func (c *container) hookInside(ctx context.Context, name string, status specs.ContainerState, h specs.Hook, id *identity, filter []byte) error {
	ctx, cancel := hookContext(ctx, h)
	defer cancel()
	pid, err := c.innerPid()
	if err != nil {
		return err
	}
	in, err := state(c.spec, c.id, c.dir, status, pid)
	if err != nil {
		return err
	}
	defer in.Close()
	id.paths, id.args, id.env = []string{h.Path}, h.Args, h.Env
	if len(id.args) == 0 {
		id.args = []string{h.Path}
	}
	out, err := hookOutput()
	if err != nil {
		return err
	}
	defer out.Close()
	p, err := c.exec(ctx, &engine.ExecConfig{Process: &specs.Process{User: c.spec.Process.User}, Seccomp: filter,
		Stdin: in, Stdout: out, Stderr: out}, id)
	if err != nil {
		return fmt.Errorf("%s hook %s: %w", name, h.Path, err)
	}
	if err := withOutput(p.awaitHook(ctx), out); err != nil {
		return fmt.Errorf("%s hook %s: %w", name, h.Path, err)
	}
	return nil
}

// innerPid is the pid of the container's first process as the container sees it.
func (c *container) innerPid() (int, error) {
	b, err := readAt(c.engine.proc, strconv.Itoa(c.init.Pid())+"/status")
	if err != nil {
		return 0, gone(unix.ESRCH)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "NSpid:"); ok {
			f := strings.Fields(v)
			return strconv.Atoi(f[len(f)-1])
		}
	}
	return c.init.Pid(), nil
}
