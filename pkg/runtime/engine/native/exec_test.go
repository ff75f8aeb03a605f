package native

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// running starts a container that lives until its test ends.
func (b *bed) running(t testing.TB, spec *specs.Spec) engine.Container {
	t.Helper()
	spec.Process.Args = []string{"/bin/sleep", "600"}
	ct := b.create(t, b.config(t, spec))
	if err := ct.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	return ct
}

// execSh runs a shell script in the container and returns its lines.
func execSh(t testing.TB, ct engine.Container, p *specs.Process, script string) []string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	p.Args = []string{"/bin/sh", "-c", script}
	e, err := ct.Exec(testContext(t), &engine.ExecConfig{Process: p, Stdout: w, Stderr: w})
	if err != nil {
		t.Fatal(err)
	}
	out, code := drain(t, r, w, e)
	if code != 0 {
		t.Errorf("exit code %d: %s", code, out)
	}
	return strings.Split(out, "\n")
}

func TestExec(t *testing.T) {
	b := newBed(t)
	for _, userns := range []bool{false, true} {
		t.Run(fmt.Sprint("userns ", userns), func(t *testing.T) {
			spec := newSpec()
			spec.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0", Final: "0"}
			if userns {
				withUserNS(spec)
			}
			ct := b.running(t, spec)
			p := newSpec().Process
			p.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{7, 8, 9}}
			p.Env = []string{"PATH=/bin", "RAW=\xff\xfe", "BIG=" + strings.Repeat("x", 100000)}
			lines := execSh(t, ct, p, `id; echo pid $$; cd /proc/self/fd; echo fds *; grep Cpus_allowed_list /proc/self/status
echo big ${#BIG}
: > /dev/stdout && echo reopened`)
			has(t, lines, "uid=1000 gid=1000 groups=7,8,9", "fds 0 1 2 3", "Cpus_allowed_list:\t0", "big 100000", "reopened")
			// The links of pid 1 can only be read by its own user.
			lines = execSh(t, ct, newSpec().Process, `for n in net ipc uts mnt pid user cgroup; do
[ "$(readlink /proc/self/ns/$n)" = "$(readlink /proc/1/ns/$n)" ] || echo other $n; done; echo done`)
			has(t, lines[:1], "done")
			for args, is := range map[string]func(error) bool{"/no/such": errdefs.IsNotFound, "nosuch": errdefs.IsNotFound,
				"/etc": errdefs.IsPermissionDenied, "/bin/busybox/x": errdefs.IsNotFound} {
				p := newSpec(args).Process
				if _, err := ct.Exec(testContext(t), &engine.ExecConfig{Process: p}); !is(err) {
					t.Errorf("%s: %v", args, err)
				}
			}
			for _, bad := range []*engine.ExecConfig{{}, {Process: &specs.Process{}}, {Process: &specs.Process{Args: []string{"x"}, Cwd: "rel"}},
				{Process: &specs.Process{Args: []string{"x"}, Cwd: "/", Terminal: true}, Stdin: os.Stdin}} {
				if _, err := ct.Exec(testContext(t), bad); !errdefs.IsInvalidArgument(err) {
					t.Errorf("bad exec: %v", err)
				}
			}
		})
	}
}

// TestExecTerminal also replaces the container's /dev/pts by a trap.
func TestExecTerminal(t *testing.T) {
	b := newBed(t)
	spec := newSpec()
	caps := append([]string{"CAP_SYS_ADMIN"}, defaultCaps...)
	spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: caps}
	ct := b.running(t, spec)
	p := newSpec("/bin/sh", "-c", "tty; stty size").Process
	p.Terminal, p.ConsoleSize = true, &specs.Box{Height: 7, Width: 77}
	e, err := ct.Exec(testContext(t), &engine.ExecConfig{Process: p})
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, 0, 64)
	for buf := make([]byte, 64); ; {
		n, err := e.Terminal().Read(buf)
		out = append(out, buf[:n]...)
		if err != nil { // EIO once the session has ended
			break
		}
	}
	e.Terminal().Close()
	if string(out) != "/dev/pts/0\r\n7 77\r\n" {
		t.Errorf("%q", out)
	}
	for _, trap := range []string{"mount -t tmpfs t /dev/pts && touch /dev/pts/ptmx", "umount /dev/pts; touch /dev/pts/ptmx; mount --bind /dev/zero /dev/pts/ptmx"} {
		q := newSpec().Process
		q.Capabilities = spec.Process.Capabilities
		execSh(t, ct, q, trap)
		if e, err := ct.Exec(testContext(t), &engine.ExecConfig{Process: p}); !errdefs.IsPermissionDenied(err) {
			t.Errorf("%s: %v", trap, err)
			if err == nil {
				e.Terminal().Close()
			}
		}
	}
}

// TestExecEnds: sessions leave no descriptor behind, and an ended container takes none.
func TestExecEnds(t *testing.T) {
	b := newBed(t)
	ct := b.running(t, newSpec())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				p, err := ct.Exec(testContext(t), &engine.ExecConfig{Process: newSpec("true").Process})
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := p.Child().Wait(testContext(t)); err != nil {
					t.Error(err)
				}
				if err := p.Signal(unix.SIGTERM); !errdefs.IsNotFound(err) {
					t.Errorf("signal after the end: %v", err)
				}
			}
		})
	}
	wg.Wait()
	execSh(t, ct, newSpec().Process, "true")
	if n := len(ct.(*container).execs); n > 9 {
		t.Errorf("%d sessions are remembered", n)
	}
	if err := ct.Delete(testContext(t)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("delete while it runs: %v", err)
	}
	if err := ct.Kill(testContext(t)); err != nil {
		t.Fatal(err)
	}
	for range 20 { // at any moment of the container's end
		p, err := ct.Exec(testContext(t), &engine.ExecConfig{Process: newSpec("/bin/true").Process})
		if err == nil {
			<-p.Child().Done()
		} else if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("exec in an ended container: %v", err)
		}
	}
}

func TestSecurityLabels(t *testing.T) {
	b := newBed(t)
	if _, err := os.Stat("/proc/self/attr/apparmor/exec"); err == nil {
		t.Skip("this kernel has AppArmor")
	}
	for name, change := range map[string]func(*specs.Process){
		"apparmor": func(p *specs.Process) { p.ApparmorProfile = "nosuch" },
		"selinux":  func(p *specs.Process) { p.SelinuxLabel = "u:r:t:s0" },
	} {
		spec := newSpec("/bin/true")
		change(spec.Process)
		ct, err := b.Create(testContext(t), b.config(t, spec))
		if err != nil { // it prepares itself while it is built, and is gone early or late
			if !strings.Contains(err.Error(), "security label") {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		t.Cleanup(func() { remove(t, ct) })
		if _, err := ct.Save(); name == "selinux" && err == nil {
			t.Error("saved what can't be started")
		}
		if err := ct.Start(testContext(t)); err == nil || !strings.Contains(err.Error(), "security label") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMemoryPolicy(t *testing.T) {
	b := newBed(t)
	if _, err := os.Stat("/proc/self/numa_maps"); err != nil {
		t.Skip("no NUMA in this kernel: ", err)
	}
	spec := newSpec()
	spec.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0"}
	if l := b.sh(t, spec, "head -n 1 /proc/self/numa_maps"); !strings.Contains(l[0], " bind:0") {
		t.Errorf("%s", l)
	}
}
