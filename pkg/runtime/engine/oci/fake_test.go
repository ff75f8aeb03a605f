package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// fake is a runtime in a shell script: body handles "$cmd", the subcommand, with $log, $pidfile and $sock taken from
// its arguments; what it leaves is --version and delete.
func fake(t *testing.T, body string) *Engine {
	t.Helper()
	testns.Root(t)
	dir := t.TempDir()
	script := `#!/bin/sh
while [ $# -gt 0 ]; do
	case $1 in
	--log) log=$2; shift ;;
	--pid-file) pidfile=$2; shift ;;
	--console-socket) sock=$2; shift ;;
	--root|--log-format|--bundle|--process) shift ;;
	-*) [ "$1" = --version ] && echo "fake 1" && exit ;;
	*) [ -z "$cmd" ] && cmd=$1 ;;
	esac
	shift
done
echo $cmd >> ` + dir + `/calls
` + body + `
[ "$cmd" = delete ] || exit 1
`
	path := filepath.Join(dir, "runtime")
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	e, err := New(Config{Path: path, Root: filepath.Join(dir, "root")}, theReaper())
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func config(t *testing.T) *engine.Config {
	t.Helper()
	return &engine.Config{
		ID: "fake", Dir: t.TempDir(), Rootfs: rootfs.Rootfs{Path: t.TempDir()},
		Spec: &specs.Spec{Process: &specs.Process{Args: []string{"x"}, Cwd: "/"}, Linux: &specs.Linux{}},
	}
}

func empty(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func limited(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestFailingCreate(t *testing.T) {
	for name, x := range map[string]struct {
		body, says string
		terminal   bool
		is         func(error) bool
	}{
		"no message":  {`[ $cmd = create ] && exit 4`, "exit code 4", false, nil},
		"log":         {`[ $cmd = create ] && echo '{"level":"error","msg":"it is broken"}' > $log && exit 1`, "it is broken", false, nil},
		"no pid file": {`[ $cmd = create ] && exit 0`, "pid file", false, nil},
		"bad pid":     {`[ $cmd = create ] && echo nonsense > $pidfile && exit 0`, `"nonsense"`, false, nil},
		"reaped":      {`[ $cmd = create ] && { sh -c 'exit 3' & echo $! > $pidfile; wait; exit 0; }`, "the runtime has waited for it", false, nil},
		"stranger":    {`[ $cmd = create ] && cut -d' ' -f4 /proc/$PPID/stat > $pidfile && exit 0`, "is not this process's child", false, nil},
		"pid 1":       {`[ $cmd = create ] && echo 1 > $pidfile && exit 0`, `"1"`, false, nil},
		"exists":      {`[ $cmd = create ] && echo '{"level":"error","msg":"container with given ID already exists"}' > $log && exit 1`, "already exists", false, errdefs.IsAlreadyExists},
		"binary log":  {`[ $cmd = create ] && head -c 400000 /dev/urandom > $log && exit 1`, "exit code 1", false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			e := fake(t, x.body)
			cfg := config(t)
			cfg.Spec.Process.Terminal = x.terminal
			_, err := e.Create(limited(t, 20*time.Second), cfg)
			if err == nil || !strings.Contains(err.Error(), x.says) || x.is != nil && !x.is(err) {
				t.Errorf("error %v", err)
			}
			empty(t, cfg.Dir)
			calls, _ := os.ReadFile(filepath.Join(filepath.Dir(e.path), "calls"))
			if deleted := strings.Contains(string(calls), "delete"); deleted == (name == "exists") {
				t.Errorf("delete was called: %v", deleted)
			}
		})
	}
}

func TestHangingCreate(t *testing.T) {
	e := fake(t, `[ $cmd = create ] && exec sleep 1000`)
	cfg := config(t)
	_, err := e.Create(limited(t, 200*time.Millisecond), cfg)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	empty(t, cfg.Dir)
}

func TestOwnDeadline(t *testing.T) {
	e := fake(t, `[ $cmd = start ] && echo '{"level":"error","msg":"waiting for godot"}' > $log && exec sleep 1000`)
	err := e.run(context.Background(), invocation{args: []string{"start", "x"}, dir: t.TempDir(), timeout: 200 * time.Millisecond})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "not finished after 200ms (waiting for godot)") {
		t.Errorf("error %v", err)
	}
}

func TestLife(t *testing.T) {
	e := fake(t, `case $cmd in
create) sleep 1000 & echo $! > $pidfile; exit 0 ;;
exec) sh -c 'sleep 0.05; exit 7' & echo $! > $pidfile; exit 0 ;;
start) exit 0 ;;
kill) echo '{"level":"error","msg":"container not running"}' > $log; exit 1 ;;
esac`)
	cfg := config(t)
	ctx := limited(t, 20*time.Second)
	c, err := e.Create(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		x, err := c.Exec(ctx, &engine.ExecConfig{Process: &specs.Process{Args: []string{"x"}, Cwd: "/"}})
		if err != nil {
			t.Fatal(err)
		}
		if st, err := x.Child().Wait(ctx); err != nil || st.Code() != 7 {
			t.Errorf("exec: %d %v", st.Code(), err)
		}
		if err := x.Signal(15); !errdefs.IsNotFound(err) {
			t.Errorf("signal after the end: %v", err)
		}
	}
	if err := c.Kill(ctx); err != nil {
		t.Errorf("kill of what has ended: %v", err)
	}
	// The fake's delete kills nothing; the engine makes sure.
	for range 2 {
		if err := c.Delete(ctx); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if st, err := c.Process().Child().Wait(ctx); err != nil || st.Code() != 137 {
		t.Errorf("end: %d %v", st.Code(), err)
	}
	if err := c.Start(ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start after the end: %v", err)
	}
	empty(t, cfg.Dir)
}

func TestNoTerminalSent(t *testing.T) {
	e := fake(t, `[ $cmd = create ] && sleep 1000 & [ $cmd = create ] && echo $! > $pidfile && exit 0`)
	cfg := config(t)
	cfg.Spec.Process.Terminal = true
	_, err := e.Create(limited(t, time.Second), cfg)
	if err == nil || !strings.Contains(err.Error(), "console") {
		t.Errorf("error %v", err)
	}
	empty(t, cfg.Dir)
}

func TestBadConfig(t *testing.T) {
	e := fake(t, "")
	for name, change := range map[string]func(*engine.Config){
		"no id": func(c *engine.Config) { c.ID = "" }, "climbing id": func(c *engine.Config) { c.ID = "../x" },
		"option as id": func(c *engine.Config) { c.ID = "--root" }, "capital": func(c *engine.Config) { c.ID = "A" },
		"no spec": func(c *engine.Config) { c.Spec = nil }, "no process": func(c *engine.Config) { c.Spec.Process = nil },
		"no args": func(c *engine.Config) { c.Spec.Process.Args = nil }, "relative cwd": func(c *engine.Config) { c.Spec.Process.Cwd = "x" },
		"cgroup": func(c *engine.Config) { c.Cgroup = &engine.Cgroup{} }, "relative dir": func(c *engine.Config) { c.Dir = "x" },
		"new user namespace without a map": func(c *engine.Config) {
			c.Spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.UserNamespace}}
		},
		"unmapped root": func(c *engine.Config) {
			c.Spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.UserNamespace, Path: "/proc/self/ns/user"}}
		},
	} {
		cfg := config(t)
		dir := cfg.Dir
		change(cfg)
		if _, err := e.Create(limited(t, 5*time.Second), cfg); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
		empty(t, dir)
	}
}

func TestNew(t *testing.T) {
	testns.Root(t)
	for name, x := range map[string]struct {
		cfg Config
		is  func(error) bool
	}{
		"missing":       {Config{Path: "/no/such/runtime", Root: t.TempDir()}, errdefs.IsNotFound},
		"not in PATH":   {Config{Path: "no-such-runtime", Root: t.TempDir()}, errdefs.IsNotFound},
		"relative root": {Config{Path: "/bin/true", Root: "x"}, errdefs.IsInvalidArgument},
		"not a runtime": {Config{Path: "/bin/false", Root: t.TempDir()}, func(err error) bool { return err != nil }},
	} {
		if _, err := New(x.cfg, theReaper()); !x.is(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLongDirectory: sun_path holds 108 bytes.
func TestLongDirectory(t *testing.T) {
	testns.Root(t)
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 30))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c, err := listen(dir, "sock", nil)
	if err != nil {
		t.Fatal(fmt.Errorf("a path of %d bytes: %w", len(dir), err))
	}
	c.close()
	empty(t, dir)
}
