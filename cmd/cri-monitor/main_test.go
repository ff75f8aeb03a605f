package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// clientEnv makes the test binary a client that does one thing until it is killed; see client_test.go.
const clientEnv = "CRI_MONITOR_TEST_CLIENT"

func TestMain(m *testing.M) {
	if os.Getenv(clientEnv) != "" {
		runClient()
		return
	}
	if os.Getenv("CRI_SERVER_TESTNS") != "" { // inside
		go reapOrphans()
	}
	testns.Main(m)
}

// reapOrphans does what init does for the processes of a cri-monitor that was killed: without that the first process of
// their pid namespace could not end (pid_namespaces(7)). All of them lead sessions of their own; what the tests
// themselves start does not.
func reapOrphans() {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	own, _ := unix.Getsid(0)
	for ; ; time.Sleep(time.Millisecond) {
		lists, _ := filepath.Glob("/proc/self/task/*/children")
		for _, name := range lists {
			b, _ := os.ReadFile(name)
			for _, field := range strings.Fields(string(b)) {
				pid, _ := strconv.Atoi(field)
				if sid, err := unix.Getsid(pid); err == nil && sid != own && isZombie(pid) {
					_, _ = unix.Wait4(pid, nil, unix.WNOHANG|unix.WALL, nil)
				}
			}
		}
	}
}

// binary builds cri-monitor once for all tests.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("/run", "bin") // /run is the tests' own tmpfs
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "cri-monitor")
	out, err := exec.Command("go", "build", "-ldflags", "-s -w", "-o", path, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// node is a launched cri-monitor with the native engine.
type node struct {
	*monitor.Client
	t     testing.TB
	dir   string
	layer string
	cfg   monitor.LaunchConfig
	pid   int
	dirs  []string // cgroups to be removed
}

func newNode(t testing.TB) *node {
	t.Helper()
	testns.Root(t)
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: t.TempDir()}
	n.layer = filepath.Join(n.dir, "layer")
	n.busybox()
	n.cfg = monitor.LaunchConfig{
		Path: path, Socket: filepath.Join(n.dir, "s"), StateDir: filepath.Join(n.dir, "state"), LogFile: filepath.Join(n.dir, "monitor.log"),
	}
	n.Client, err = monitor.Launch(t.Context(), n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	v, err := n.Version(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n.pid = v.Pid
	t.Cleanup(n.down)
	return n
}

func (n *node) down() {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	list, err := n.List(ctx)
	if err != nil {
		n.t.Error(err)
	}
	for _, st := range list {
		if err := n.Delete(ctx, st.ID); err != nil {
			n.t.Errorf("delete %s: %v", st.ID, err)
		}
	}
	for i, dir := range n.dirs {
		eventually(n.t, "rmdir "+dir, func() bool {
			err := unix.Rmdir(dir)
			return err == nil || err == unix.ENOENT || i%2 == 1 && err == unix.ENOTEMPTY || i%2 == 1 && err == unix.EBUSY
		})
	}
	if err := n.Shutdown(ctx); err != nil {
		n.t.Error(err)
	}
	n.Close()
	eventually(n.t, "cri-monitor ends", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.pid)) // its new parent may leave a zombie
		return err != nil || strings.Contains(string(b), ") Z ")
	})
	if log, _ := os.ReadFile(n.cfg.LogFile); n.t.Failed() || bytes.Contains(log, []byte("panic")) {
		n.t.Errorf("log of cri-monitor:\n%s", log)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func (n *node) busybox() {
	n.t.Helper()
	b, err := os.ReadFile("/bin/busybox")
	if err != nil {
		n.t.Skip("busybox-static is missing: ", err)
	}
	for _, d := range []string{"bin", "proc", "dev", "tmp", "sys"} {
		if err := os.MkdirAll(filepath.Join(n.layer, d), 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(n.layer, "bin/busybox"), b, 0o755); err != nil {
		n.t.Fatal(err)
	}
	for _, name := range []string{"sh", "sleep", "cat", "head", "tr", "seq", "setsid", "true", "awk", "yes", "wc", "ps", "dd"} {
		if err := os.Symlink("busybox", filepath.Join(n.layer, "bin", name)); err != nil {
			n.t.Fatal(err)
		}
	}
}

// request describes a container that runs a shell script.
func (n *node) request(id, script string) *monitor.CreateRequest {
	return &monitor.CreateRequest{
		ID: id,
		Spec: &specs.Spec{
			Version: specs.Version,
			Root:    &specs.Root{Readonly: true},
			Process: &specs.Process{Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"}},
			Mounts: []specs.Mount{
				{Destination: "/proc", Type: "proc", Source: "proc"},
				{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=64k"}},
				{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
			},
			Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace},
			}},
		},
		Rootfs: rootfs.Rootfs{Path: n.layer},
		LogDir: n.dir, LogPath: id + ".log",
	}
}

// cgroup makes a cgroup in the hierarchies asked for; "unified" is cgroup2.
func (n *node) cgroup(id string, hierarchies ...string) *engine.Cgroup {
	n.t.Helper()
	cg := &engine.Cgroup{V1: map[string]string{}}
	for _, h := range hierarchies {
		parent := filepath.Join("/sys/fs/cgroup", h, testns.CgroupParent())
		dir := filepath.Join(parent, id)
		if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", h, "cgroup.procs")); err != nil {
			n.t.Skip("no hierarchy ", h)
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			n.t.Fatal(err)
		}
		n.dirs = append(n.dirs, dir, parent)
		if h == "unified" {
			cg.Unified = dir
		} else {
			cg.V1[h] = dir
		}
	}
	return cg
}

func (n *node) run(req *monitor.CreateRequest) monitor.State {
	n.t.Helper()
	if _, err := n.Create(n.t.Context(), req); err != nil {
		n.t.Fatal(err)
	}
	st, err := n.Start(n.t.Context(), req.ID)
	if err != nil {
		n.t.Fatal(err)
	}
	return st
}

func (n *node) stopped(id string) monitor.State {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 60*time.Second)
	defer cancel()
	st, err := n.Wait(ctx, id)
	if err != nil {
		n.t.Fatal(err)
	}
	return st
}

func alive(pid int) bool { return unix.Kill(pid, 0) == nil && !isZombie(pid) }

func isZombie(pid int) bool {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return bytes.Contains(b, []byte(") Z "))
}

// TestLaunch checks what kind of process it is.
func TestLaunch(t *testing.T) {
	n := newNode(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			c, err := monitor.Launch(t.Context(), n.cfg)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if v, err := c.Version(t.Context()); err != nil || v.Pid != n.pid {
				t.Errorf("another cri-monitor: %+v %v", v, err)
			}
		})
	}
	wg.Wait()
	proc := func(name string) string {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", n.pid, name))
		return string(b)
	}
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", n.pid))
	if !strings.HasPrefix(exe, "/memfd:cri-monitor") {
		t.Errorf("exe %q", exe)
	}
	if f, err := os.OpenFile(fmt.Sprintf("/proc/%d/exe", n.pid), os.O_WRONLY, 0); err == nil {
		f.Close()
		t.Error("its program can be opened for writing")
	}
	stat := strings.Fields(proc("stat")) // pid (comm) state ppid pgrp session
	if stat[1] != "(cri-monitor)" || stat[5] != strconv.Itoa(n.pid) {
		t.Errorf("stat %v", stat[:6])
	}
	if st, err := os.Stat(n.cfg.Socket); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v %v", st, err)
	}
	other := n.cfg
	other.Socket += "2"
	if _, err := monitor.Launch(t.Context(), other); err == nil || !strings.Contains(err.Error(), "another cri-monitor") {
		t.Errorf("second one in the same directory: %v", err)
	}
	other = n.cfg
	other.StateDir += "2"
	if out, err := exec.Command(n.cfg.Path, "--socket", other.Socket, "--state-dir", other.StateDir).CombinedOutput(); err == nil ||
		!strings.Contains(string(out), "another process serves") {
		t.Errorf("second one on the same socket: %v %s", err, out)
	}
	if out, err := exec.Command(n.cfg.Path, "nonsense").CombinedOutput(); err == nil || !strings.Contains(string(out), "unexpected argument") {
		t.Errorf("bad argument: %v %s", err, out)
	}
}

// TestThreadNames: ps -L and perf(1) show the program's name, before and after an upgrade, and not that of a descriptor.
func TestThreadNames(t *testing.T) {
	n := newNode(t)
	for range 2 {
		n.run(n.request(fmt.Sprint("c", time.Now().UnixNano()), "sleep 1000")) // makes threads
		names, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/comm", n.pid))
		if err != nil || len(names) < 2 {
			t.Fatal(names, err)
		}
		for _, file := range names {
			if b, err := os.ReadFile(file); err == nil && string(b) != "cri-monitor\n" {
				t.Errorf("%s: %q", file, b)
			}
		}
		if _, err := n.Upgrade(t.Context(), n.cfg.Path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSignalsRefused sends what must not end it while it holds a container.
func TestSignalsRefused(t *testing.T) {
	n := newNode(t)
	st := n.run(n.request("c", "sleep 1000"))
	for _, sig := range []unix.Signal{unix.SIGHUP, unix.SIGPIPE, unix.SIGINT, unix.SIGTERM} {
		if err := unix.Kill(n.pid, sig); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "two refusals in the log", func() bool {
		b, _ := os.ReadFile(n.cfg.LogFile)
		return bytes.Count(b, []byte("asked to end")) >= 1
	})
	if _, err := n.State(t.Context(), "c"); err != nil || !alive(st.Pid) {
		t.Error("the container is gone: ", err)
	}
}

// TestStaleSocket starts anew after a kill -9, and the same client goes on.
func TestStaleSocket(t *testing.T) {
	n := newNode(t)
	if err := unix.Kill(n.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has died", func() bool { return !alive(n.pid) })
	if _, err := n.List(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("list without a server: %v", err)
	}
	c, err := monitor.Launch(t.Context(), n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	v, err := n.Version(t.Context())
	if err != nil || v.Pid == n.pid {
		t.Fatal(v, err)
	}
	n.pid = v.Pid
}

// TestImports keeps what a small process can't use out of it.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{
		"github.com/seed-9a14075a/cri-server/", "github.com/opencontainers/runtime-spec/specs-go",
		"github.com/containerd/errdefs", "golang.org/x/sys/unix", "github.com/moby/sys/capability",
	}
	for _, p := range strings.Fields(string(out)) {
		first, _, _ := strings.Cut(p, "/")
		ok := !strings.Contains(first, ".") || first == "vendor"
		for _, a := range allowed {
			ok = ok || strings.HasPrefix(p, a)
		}
		if !ok || p == "net/http" || p == "crypto/tls" {
			t.Errorf("cri-monitor imports %s", p)
		}
	}
}
