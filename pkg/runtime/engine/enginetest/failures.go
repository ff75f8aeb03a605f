package enginetest

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var failureTests = []test{
	{"failure/leaves nothing", nil, badSpecs},
	{"failure/cancelled before", nil, cancelledBefore},
	{"failure/cancelled in the middle", nil, cancelledInTheMiddle},
	{"failure/stdio with a terminal", nil, stdioWithTerminal},
	{"failure/bad layer", nil, badLayer},
}

// badSpecs: each is refused with an error that says what is wrong, and nothing stays behind.
func badSpecs(t *testing.T, s *suite) {
	for _, x := range []struct {
		name, says string // says: part of the message
		change     func(*specs.Spec)
	}{
		{"missing bind source", "/no/such/source", bind("/no/such/source", "/vol")},
		{"unknown capability", "CAP_NOSUCH", addCaps("CAP_NOSUCH")},
		{"missing namespace", "/no/such/ns", namespace(specs.NetworkNamespace, "/no/such/ns")},
		{"no namespace at that path", "", namespace(specs.NetworkNamespace, filepath.Join(s.layer, "data/file"))},
		{"namespace of another kind", "", namespace(specs.NetworkNamespace, nsPath(os.Getpid(), "uts"))},
		{"unknown namespace", "", namespace("nosuch", "")},
		{"unknown file system", "", withMount(specs.Mount{Destination: "/vol", Type: "nosuchfs", Source: "x"})},
		{"bad mount option", "", withMount(specs.Mount{Destination: "/vol", Type: "tmpfs", Source: "x", Options: []string{"size=nonsense"}})},
		{"directory onto a file", "", bind(s.base, "/etc/passwd")},
		{"unknown rlimit", "", func(c *specs.Spec) {
			c.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOSUCH", Soft: 1, Hard: 1}}
		}},
		{"unknown sysctl", "", func(c *specs.Spec) { c.Linux.Sysctl = map[string]string{"net.nosuch": "1"} }},
		{"cwd is a file", "", func(c *specs.Spec) { c.Process.Cwd = "/data/file" }},
		{"relative cwd", "", func(c *specs.Spec) { c.Process.Cwd = "data" }},
		{"no args", "", func(c *specs.Spec) { c.Process.Args = nil }},
	} {
		b := s.box(t, s.spec("true", x.change))
		err := b.launch()
		if err == nil {
			t.Errorf("%s: no error", x.name)
			continue
		}
		contains(t, x.name, err.Error(), x.says)
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: the message has several lines: %q", x.name, err)
		}
		b.remove()
	}
}

func cancelledBefore(t *testing.T, s *suite) {
	b := s.box(t, s.spec("true"))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.tryCreate(ctx); err == nil {
		t.Error("create succeeded")
	}
	b.leavesNothing()
}

// cancelledInTheMiddle ends the context at several moments; each time either all is made or nothing stays.
func cancelledInTheMiddle(t *testing.T, s *suite) {
	for _, after := range []time.Duration{500 * time.Microsecond, 2 * time.Millisecond, 5 * time.Millisecond, 12 * time.Millisecond, 30 * time.Millisecond, 60 * time.Millisecond} {
		b := s.box(t, s.spec("true"))
		ctx, cancel := context.WithTimeout(context.Background(), after)
		if err := b.tryCreate(ctx); err != nil {
			b.leavesNothing()
		}
		cancel()
		b.remove()
	}

	// A hook that hangs keeps create in its middle for certain.
	b := s.box(t, s.spec("true", func(c *specs.Spec) {
		c.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{s.hook("exec sleep 2002")}}
	}))
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if err := b.tryCreate(ctx); err == nil {
		t.Error("create succeeded")
	}
	if took := time.Since(begin); took > deadline/2 {
		t.Errorf("create took %s after its context had ended", took)
	}
	b.leavesNothing()
	for _, pid := range orphans(t, "sleep\x002002") {
		if !s.caps.Cgroup { // the hook's parent is the runtime, which was killed; the hook is left to init in any engine of this kind
			t.Logf("hook %d outlived the runtime", pid)
		} else {
			t.Errorf("hook %d still runs", pid)
		}
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

func stdioWithTerminal(t *testing.T, s *suite) {
	b := s.box(t, s.spec("true"))
	b.cfg.Spec.Process.Terminal = true
	if err := b.tryCreate(b.ctx()); !errdefs.IsInvalidArgument(err) {
		t.Errorf("%v; want ErrInvalidArgument", err)
	}
	b.leavesNothing()
}

func badLayer(t *testing.T, s *suite) {
	for name, path := range map[string]string{"missing": filepath.Join(s.base, "nosuch"), "a file": filepath.Join(s.layer, "data/file")} {
		b := s.box(t, s.spec("true"))
		b.cfg.Rootfs.Lower = []string{path}
		if err := b.tryCreate(b.ctx()); err == nil {
			t.Errorf("%s: create succeeded", name)
		}
		b.leavesNothing()
	}
}
