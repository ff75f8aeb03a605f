package native

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

func TestMain(m *testing.M) { testns.Main(m) }

// bed is an engine with an image to start containers from.
type bed struct {
	*Engine
	layer string // busybox in /bin
}

func newBed(t testing.TB) *bed {
	t.Helper()
	testns.Root(t)
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("busybox-static is missing: ", err)
	}
	r := reaper.New()
	e, err := New(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.Close()
		r.Close()
	})
	layer := filepath.Join(t.TempDir(), "layer")
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(layer, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(layer, "bin/busybox"), busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"sh", "cat", "id", "ls", "sleep", "stat", "mount", "ps", "true", "false", "tty", "stty", "touch",
		"readlink", "hostname", "grep", "cut", "head", "umount", "mkdir", "test", "echo", "sort", "wc", "date"} {
		if err := os.Symlink("busybox", filepath.Join(layer, "bin", n)); err != nil {
			t.Fatal(err)
		}
	}
	return &bed{e, layer}
}

var defaultCaps = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}

// newSpec is a container as Kubernetes has them.
func newSpec(args ...string) *specs.Spec {
	return &specs.Spec{
		Version:  specs.Version,
		Root:     &specs.Root{},
		Hostname: "box",
		Process: &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin", "A=b"},
			Capabilities: &specs.LinuxCapabilities{Bounding: defaultCaps, Permitted: defaultCaps, Effective: defaultCaps}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.CgroupNamespace}},
			MaskedPaths:   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/scsi", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// withUserNS puts the container into a user namespace of its own.
func withUserNS(s *specs.Spec) {
	m := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	s.Linux.UIDMappings, s.Linux.GIDMappings = m, m
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
}

// config makes the directories of one container.
func (b *bed) config(t testing.TB, spec *specs.Spec) *engine.Config {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"upper", "work", "run"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return &engine.Config{ID: "c" + strconv.FormatInt(time.Now().UnixNano(), 36), Spec: spec, Dir: filepath.Join(dir, "run"),
		Rootfs: rootfs.Rootfs{Lower: []string{b.layer}, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work")}}
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testns.Patience(30*time.Second))
	t.Cleanup(cancel)
	return ctx
}

// create makes the container and takes it down with the test.
func (b *bed) create(t testing.TB, c *engine.Config) engine.Container {
	t.Helper()
	ct, err := b.Create(testContext(t), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, ct) })
	return ct
}

func remove(t testing.TB, ct engine.Container) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testns.Patience(30*time.Second))
	defer cancel()
	if err := ct.Kill(ctx); err != nil {
		t.Error(err)
	}
	if _, err := ct.Process().Child().Wait(ctx); err != nil {
		t.Error(err)
	}
	if f := ct.Process().Terminal(); f != nil {
		f.Close()
	}
	for range 2 { // it is idempotent
		if err := ct.Delete(ctx); err != nil {
			t.Error(err)
		}
	}
}

// output runs the container to its end and returns what it wrote and its exit code.
func (b *bed) output(t testing.TB, c *engine.Config) (string, int) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	c.Stdout, c.Stderr = w, w
	ct := b.create(t, c)
	if err := ct.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	return drain(t, r, w, ct.Process())
}

func drain(t testing.TB, r, w *os.File, p engine.Process) (string, int) {
	t.Helper()
	w.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	st, err := p.Child().Wait(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	return string(out), st.Code()
}

// sh runs a shell script in a container of the spec and returns its lines.
func (b *bed) sh(t testing.TB, spec *specs.Spec, script string) []string {
	t.Helper()
	spec.Process.Args = []string{"/bin/sh", "-c", script}
	out, code := b.output(t, b.config(t, spec))
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	return strings.Split(strings.TrimSuffix(out, "\n"), "\n")
}

// has fails the test unless each text is one of the lines.
func has(t testing.TB, lines []string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !slices.Contains(lines, text) {
			t.Errorf("no line %q in:\n%s", text, strings.Join(lines, "\n"))
		}
	}
}
