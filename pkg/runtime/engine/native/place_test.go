package native

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// A cgroup may come when all else is there, whatever else the stub has to do; its absence is an error.
func TestCgroupComesLate(t *testing.T) {
	b := newBed(t)
	for name, change := range map[string]func(*engine.Config){
		"plain": func(*engine.Config) {},
		"user":  func(c *engine.Config) { withUserNS(c.Spec) },
		"old":   func(*engine.Config) { b.stubProc.Store(true) },
		"hooks": func(c *engine.Config) {
			c.Spec.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/true"}}}
		},
		"cgroup2": func(c *engine.Config) { c.Spec.Mounts[6].Type = "cgroup2" },
		"host's":  func(c *engine.Config) { c.Spec.Linux.Namespaces = c.Spec.Linux.Namespaces[:5] },
	} {
		t.Run(name, func(t *testing.T) {
			defer b.stubProc.Store(false)
			cg := testCgroup(t, "late")
			dirs, of := slices.Collect(maps.Values(cg.V1)), ":pids"
			if len(dirs) == 0 {
				dirs, of = []string{cg.Unified}, "0:"
			}
			c := b.config(t, newSpec("/bin/cat", "/proc/self/cgroup"))
			change(c)
			c.Cgroup = cg
			for _, dir := range dirs {
				if err := os.Remove(dir); err != nil {
					t.Fatal(err)
				}
			}
			calls := 0
			c.FinishCgroup = func(context.Context) error {
				calls++
				for _, dir := range dirs {
					if err := os.Mkdir(dir, 0o755); err != nil {
						return err
					}
				}
				return nil
			}
			out, code := b.output(t, c)
			want := ":/\n"
			if name == "host's" {
				want = ":" + filepath.Join("/", testns.CgroupParent(), "late") + "\n"
			}
			if code != 0 || calls != 1 || !strings.Contains(out, of+want) {
				t.Errorf("code %d, %d calls, %s", code, calls, out)
			}
		})
	}
}

// A filter that forbids what a stub does in its cgroup is loaded when the stub is there, also when the cgroup comes last.
func TestCgroupComesAfterTheRoot(t *testing.T) {
	b := newBed(t)
	cg := testCgroup(t, "last")
	c := b.config(t, newSpec("/bin/cat", "/proc/self/cgroup"))
	c.Spec.Mounts = c.Spec.Mounts[:6] // for a cgroup mount the cgroup is waited for
	c.Spec.Process.Cwd = "/late"
	c.Seccomp = bpf([4]uint32{unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, [4]uint32{unix.BPF_JMP | unix.BPF_JEQ, 0, 1, unix.SYS_UNSHARE},
		[4]uint32{unix.BPF_RET, 0, 0, 0x50001}, [4]uint32{unix.BPF_RET, 0, 0, seccompRetAllow})
	c.Cgroup = cg
	c.FinishCgroup = func(ctx context.Context) error {
		// The working directory is made when all mounts are there.
		for len(cg.V1) > 0 {
			if _, err := os.Stat(filepath.Join(c.Rootfs.Upper, "late")); err == nil || ctx.Err() != nil {
				return ctx.Err()
			}
		}
		return nil
	}
	if out, code := b.output(t, c); code != 0 || !strings.Contains(out, ":/\n") {
		t.Errorf("code %d, %s", code, out)
	}
}

// What an engine has saved that did not prepare its stubs can still be started.
func TestAdoptUnprepared(t *testing.T) {
	b := newBed(t)
	s, err := b.fork(launch{clone: unix.CLONE_NEWPID})
	if err != nil {
		t.Fatal(err)
	}
	root, err := unix.Open(b.layer, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	if err := s.do(opRoot, 0, nil, root); err != nil {
		t.Fatal(err)
	}
	spec := newSpec("/bin/sh", "-c", "exit 7")
	spec.Hostname = ""
	d := saved{ID: "old", Dir: t.TempDir(), Spec: kept(spec), Pid: s.child.Pid(), Pending: &savedPending{Spec: spec}}
	data, err := json.Marshal(&d)
	if err != nil {
		t.Fatal(err)
	}
	a, err := b.Adopt(testContext(t), &engine.Saved{Data: data, Files: []int{s.pidfd, s.fd}})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := a.Container.Save(); err != nil || again.Newer || !strings.Contains(string(again.Data), `"pending"`) {
		t.Errorf("saved again: %+v %v", again, err)
	}
	if err := a.Container.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if st, err := a.Container.Process().Child().Wait(testContext(t)); err != nil || st.Code() != 7 {
		t.Errorf("%v %v", st, err)
	}
	if err := a.Container.Delete(testContext(t)); err != nil {
		t.Error(err)
	}
}

// The container is built in the namespaces that its stub is only about to join.
func TestJoinedNamespacesAreEntered(t *testing.T) {
	b := newBed(t)
	first := b.create(t, b.config(t, newSpec("/bin/sleep", "100")))
	if err := first.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	const file = "/proc/sys/net/ipv4/ip_local_port_range"
	ours, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	cg := testCgroup(t, "joined") // without one the stub is waited for
	for i := range 50 {
		want := fmt.Sprintf("%d\t50000\n", 40000+i)
		c := b.config(t, newSpec("/bin/cat", file))
		for j, n := range c.Spec.Linux.Namespaces {
			if kind := map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts"}[n.Type]; kind != "" {
				c.Spec.Linux.Namespaces[j].Path = fmt.Sprintf("/proc/%d/ns/%s", first.Process().Child().Pid(), kind)
			}
		}
		c.Spec.Hostname, c.Cgroup = "", cg
		c.Spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_local_port_range": want}
		if out, code := b.output(t, c); code != 0 || out != want {
			t.Fatalf("%d: code %d, %q", i, code, out)
		}
	}
	if now, err := os.ReadFile(file); err != nil || string(now) != string(ours) {
		t.Errorf("our own was %q and is %q, %v", ours, now, err)
	}
}
