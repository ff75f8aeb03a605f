package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// TestOCI takes a container through its life with an OCI runtime.
func TestOCI(t *testing.T) {
	for _, name := range []string{"crun", "runc"} {
		t.Run(name, func(t *testing.T) {
			path, err := exec.LookPath(name)
			if err != nil {
				t.Skip(name, " is missing")
			}
			if name == "crun" {
				hideUnified(t)
			}
			n := newNode(t)
			req := n.request("c", `echo out; while read l; do echo "got $l"; done; exit 6`)
			req.OCI = &monitor.OCIRuntime{Path: path, Root: filepath.Join(n.dir, "root")}
			req.Stdin, req.StdinOnce = true, true
			req.Spec.Linux.CgroupsPath = testns.CgroupParent() + "/" + name
			t.Cleanup(func() { removeCgroups(t) })
			t.Cleanup(func() { _ = n.Delete(context.Background(), "c") })
			n.run(req)
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			x, err := n.Exec(t.Context(), &monitor.ExecRequest{ID: "c", Stdout: w, Process: &specs.Process{
				Args: []string{"/bin/sh", "-c", "echo up; sleep 1000; true"}, Cwd: "/", Env: []string{"PATH=/bin"},
			}})
			w.Close()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(r, make([]byte, 3)); err != nil {
				t.Fatal(err)
			}
			if err := x.Kill(); err != nil {
				t.Error(err)
			}
			if code, err := x.Wait(t.Context()); code != 137 || err != nil {
				t.Errorf("exec: %d %v", code, err)
			}
			x.Close()
			if _, err := io.ReadAll(r); err != nil { // until the sleep is gone, too
				t.Error(err)
			}
			in, to, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			a, err := n.Attach(t.Context(), &monitor.AttachRequest{ID: "c", Stdin: in})
			in.Close()
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			_, _ = to.WriteString("it\n")
			to.Close()
			if st := n.stopped("c"); st.ExitCode != 6 {
				t.Errorf("%+v", st)
			}
			b, _ := os.ReadFile(filepath.Join(n.dir, "c.log"))
			if s := string(b); !strings.Contains(s, " F out\n") || !strings.HasSuffix(s, " F got it\n") {
				t.Errorf("log %q", s)
			}
			if err := n.Delete(t.Context(), "c"); err != nil {
				t.Error(err)
			}
			req.OCI.Path = "/no/such/runtime"
			if _, err := n.Create(t.Context(), req); !errdefs.IsNotFound(err) {
				t.Errorf("missing runtime: %v", err)
			}
		})
	}
}

// hideUnified takes the cgroup2 mount of a hybrid layout out of the tests' mount namespace: crun refuses to run with it.
func hideUnified(t *testing.T) {
	t.Helper()
	const at = "/sys/fs/cgroup/unified"
	var st unix.Statfs_t
	if unix.Statfs(at, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		return
	}
	if err := unix.Unmount(at, 0); err != nil {
		t.Fatal(err)
	}
	// What lies below is the host's tmpfs; the runtime would make directories in it.
	if err := unix.Mount("tmpfs", at, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
		if err := unix.Mount("cgroup2", at, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			t.Error(err)
		}
	})
}

// removeCgroups removes what the runtime has made below, and with, the tests' parent.
func removeCgroups(t *testing.T) {
	t.Helper()
	parents, _ := filepath.Glob("/sys/fs/cgroup/*" + testns.CgroupParent())
	for _, p := range parents {
		var st unix.Statfs_t
		if unix.Statfs(p, &st) == nil && st.Type == unix.TMPFS_MAGIC {
			continue // the cover of hideUnified
		}
		eventually(t, "rmdir "+p, func() bool {
			children, _ := filepath.Glob(p + "/*/")
			for _, c := range children {
				_ = unix.Rmdir(c)
			}
			err := unix.Rmdir(p)
			return err == nil || err == unix.ENOENT
		})
	}
}

// TestUnit runs it as a unit of systemd does: in the foreground, telling when it is ready.
func TestUnit(t *testing.T) {
	testns.Root(t)
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	cmd := exec.Command(path, "--socket", filepath.Join(dir, "s"), "--state-dir", filepath.Join(dir, "state"))
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = notify.SetReadDeadline(time.Now().Add(10 * time.Second))
	for b := make([]byte, 4096); ; { // what it puts into the descriptor store comes before
		got, err := notify.Read(b)
		if err != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			t.Fatalf("never told that it is ready: %v", err)
		}
		if strings.HasPrefix(string(b[:got]), "READY=1\n") {
			break
		}
	}
	c, err := monitor.Dial(t.Context(), filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if v, err := c.Version(t.Context()); err != nil || v.Pid != cmd.Process.Pid {
		t.Errorf("%+v %v", v, err)
	}
	// Without containers SIGTERM ends it.
	_ = cmd.Process.Signal(unix.SIGTERM)
	if err := cmd.Wait(); err != nil && !errors.Is(err, unix.ECHILD) { // the tests' reaper may be faster
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "s")); !os.IsNotExist(err) {
		t.Errorf("its socket stays: %v", err)
	}
}

func BenchmarkExec(b *testing.B) {
	n := newNode(b)
	req := n.request("c", "exec sleep 1000")
	req.Cgroup = n.cgroup("c", "unified")
	n.run(req)
	for b.Loop() {
		x, err := n.Exec(b.Context(), &monitor.ExecRequest{ID: "c", Process: &specs.Process{Args: []string{"/bin/true"}, Cwd: "/"}})
		if err != nil {
			b.Fatal(err)
		}
		if code, err := x.Wait(b.Context()); code != 0 || err != nil {
			b.Fatal(code, err)
		}
		x.Close()
	}
}

func BenchmarkLife(b *testing.B) {
	n := newNode(b)
	for b.Loop() {
		n.run(n.request("c", "exec true"))
		n.stopped("c")
		if err := n.Delete(b.Context(), "c"); err != nil {
			b.Fatal(err)
		}
	}
}
