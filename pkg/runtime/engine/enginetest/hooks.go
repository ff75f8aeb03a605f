package enginetest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var hookTests = []test{
	{"hooks/all kinds", nil, allHooks},
	{"hooks/env and args", nil, hookEnv},
	{"hooks/failing before create ends", nil, failingHooks},
	{"hooks/failing at start", []Feature{HookErrors}, failingStartHook},
	{"hooks/timeout", nil, hookTimeout},
}

// hook runs script with a shell of the host (of the container for startContainer).
func (s *suite) hook(script string) specs.Hook {
	return specs.Hook{Path: filepath.Join(s.layer, "bin/busybox"), Args: []string{"sh", "-c", script}, Env: []string{"PATH=" + s.layer + "/bin"}}
}

func allHooks(t *testing.T, s *suite) {
	dir := s.hostDir(t)
	save := func(kind string) specs.Hook {
		return s.hook("cat > " + dir + "/" + kind + "; echo " + kind + " >> " + dir + "/order; readlink /proc/self/ns/mnt > " + dir + "/" + kind + ".ns")
	}
	inside := specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "cat > /vol/startContainer; echo startContainer >> /vol/order"}, Env: []string{"PATH=/bin"}}
	b := s.box(t, s.spec("echo program >> /vol/order; cat >/dev/null", bind(dir, "/vol"), func(c *specs.Spec) {
		c.Annotations = map[string]string{"org.example": "yes"}
		c.Hooks = &specs.Hooks{
			//lint:ignore SA1019 deprecated, and still in use
			Prestart:      []specs.Hook{save("prestart")},
			CreateRuntime: []specs.Hook{save("createRuntime")}, CreateContainer: []specs.Hook{save("createContainer")},
			StartContainer: []specs.Hook{inside}, Poststart: []specs.Hook{save("poststart")}, Poststop: []specs.Hook{save("poststop")},
		}
	})).create()
	early := s.lacks(t, PoststartHooks)
	if !early {
		equal(t, "order before start", read(t, dir+"/order"), "prestart\ncreateRuntime\ncreateContainer")
	}
	mnt := nsOf(t, b.pid(), "mnt")
	b.start()
	if !eventually(func() bool {
		return strings.Contains(read(t, dir+"/order"), "poststart") && strings.Contains(read(t, dir+"/order"), "program")
	}) {
		t.Errorf("order: %s", read(t, dir+"/order"))
	}
	order := read(t, dir+"/order")
	if strings.Index(order, "startContainer") > strings.Index(order, "program") {
		t.Errorf("startContainer ran after the program: %s", order)
	}
	pid := b.pid()
	b.finish()
	b.remove()
	contains(t, "order at the end", read(t, dir+"/order"), "\npoststop")
	equal(t, "createContainer ran in the container's mount namespace", read(t, dir+"/createContainer.ns"), mnt)
	equal(t, "createRuntime ran in the host's", read(t, dir+"/createRuntime.ns"), nsOf(t, os.Getpid(), "mnt"))
	for _, x := range []struct {
		kind, states string
		pid          int // 0: anything
	}{
		{"prestart", "creating created", pid}, {"createRuntime", "creating created", pid}, {"createContainer", "creating created", 0},
		{"startContainer", "created creating starting", 0}, {"poststart", "running", pid}, {"poststop", "stopped", 0},
	} {
		var state specs.State
		if err := json.Unmarshal([]byte(read(t, dir+"/"+x.kind)), &state); err != nil {
			t.Errorf("%s: state on stdin: %v", x.kind, err)
			continue
		}
		equal(t, x.kind+" id", state.ID, b.cfg.ID)
		if x.kind != "poststart" || !early {
			contains(t, x.kind+" status", x.states, string(state.Status))
		}
		equal(t, x.kind+" annotation", state.Annotations["org.example"], "yes")
		if x.kind != "startContainer" { // nobody inside can use it
			equal(t, x.kind+" bundle", state.Bundle, b.cfg.Dir)
		}
		if x.pid != 0 {
			equal(t, x.kind+" pid", state.Pid, x.pid)
		}
	}
}

func hookEnv(t *testing.T, s *suite) {
	dir := s.hostDir(t)
	h := s.hook("echo $0 $1; env")
	h.Args = []string{"sh", "-c", "(echo $0 $1 $FOO; [ -z \"$HOME\" ] && echo clean) > " + dir + "/out", "zero", "one"}
	h.Env = []string{"FOO=bar"}
	s.sh(t, "true", func(c *specs.Spec) { c.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{h}} })
	equal(t, "hook", read(t, dir+"/out"), "zero one bar\nclean")
}

func failingHooks(t *testing.T, s *suite) {
	bad := []specs.Hook{s.hook("exit 3")}
	missing := []specs.Hook{{Path: "/no/such/hook"}}
	for name, hooks := range map[string]*specs.Hooks{
		"prestart":        {Prestart: bad},
		"createRuntime":   {CreateRuntime: bad},
		"createContainer": {CreateContainer: bad},
		"missing":         {CreateRuntime: missing},
	} {
		b := s.box(t, s.spec("true", func(c *specs.Spec) { c.Hooks = hooks }))
		if err := b.tryCreate(b.ctx()); err == nil {
			t.Errorf("%s: create succeeded", name)
		} else {
			b.leavesNothing()
		}
	}
}

func failingStartHook(t *testing.T, s *suite) {
	b := s.box(t, s.spec("touch /tmp/ran", func(c *specs.Spec) {
		c.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "exit 3"}}}}
	}))
	if err := b.launch(); err == nil {
		t.Error("start succeeded")
	}
	if _, err := os.Stat(filepath.Join(b.dir, "upper/tmp/ran")); err == nil {
		t.Error("the program ran")
	}
}

func hookTimeout(t *testing.T, s *suite) {
	h := s.hook("exec sleep 1001")
	h.Timeout = ptr(1)
	b := s.box(t, s.spec("true", func(c *specs.Spec) { c.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{h}} }))
	if err := b.tryCreate(b.ctx()); err == nil {
		t.Error("create succeeded")
	}
	for _, pid := range orphans(t, "sleep\x001001") {
		t.Errorf("hook %d still runs", pid)
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}
