package oci

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

func TestMain(m *testing.M) { testns.Main(m) }

var theReaper = sync.OnceValue(func() *reaper.Reaper {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	return reaper.New()
})

func TestParseVersion(t *testing.T) {
	for in, want := range map[string]string{"1.0.2-dev": "1.0.2", "1.2.0": "1.2.0", " 1.0.0 ": "1.0.0", "1.1.0+dev": "1.1.0"} {
		if v, ok := parseVersion(in); !ok || v.String() != want {
			t.Errorf("%q: %s %v, want %s", in, v, ok, want)
		}
	}
	for _, in := range []string{"", "1", "1.0", "1.0.x", "1.0.-1", "1.0.0.0", "99999999.0.0"} {
		if v, ok := parseVersion(in); ok {
			t.Errorf("%q: %s, want none", in, v)
		}
	}
}

func TestVersionLine(t *testing.T) {
	crun := "crun version 1.8.1\ncommit: f8a0\nspec: 1.0.0\n+SYSTEMD\n"
	if v := versionLine([]byte(crun)); v != (version{1, 0, 0}) {
		t.Error(v)
	}
	for _, text := range []string{"", "some runtime 3", "spec: nonsense\n"} {
		if v := versionLine([]byte(text)); v != baseline {
			t.Errorf("%q: %s", text, v)
		}
	}
}

func TestSpecVersion(t *testing.T) {
	for _, x := range []struct {
		runtime   version
		own, want string
	}{
		{version{1, 0, 0}, "1.3.0", "1.0.2"}, // crun 1.8.1 takes 1.0.x
		{version{1, 0, 2}, "1.3.0", "1.0.2"},
		{version{1, 2, 0}, "1.3.0", "1.2.0"},
		{version{1, 3, 0}, "1.1.0", "1.1.0"},
		{version{1, 2, 0}, "", "1.2.0"},
	} {
		if got := (capability{version: x.runtime}).specVersion(x.own); got != x.want {
			t.Errorf("%s, %q: %s, want %s", x.runtime, x.own, got, x.want)
		}
	}
}

func TestParseLog(t *testing.T) {
	for name, x := range map[string]struct{ log, want string }{
		"runc":     {`{"level":"warning","msg":"w"}` + "\n" + `{"level":"error","msg":"runc create failed: no such file","time":"t"}` + "\n", "runc create failed: no such file"},
		"last one": {`{"level":"error","msg":"one"}` + "\n" + `{"level":"error","msg":"two\nlines"}` + "\n", "two lines"},
		"no level": {`{"msg":"crun says"}`, "crun says"},
		"garbage":  {"not json\n{\"level\":\"error\"\n\x00\x00", ""},
		"empty":    {"", ""},
	} {
		if got := parseLog(strings.NewReader(x.log)); got != x.want {
			t.Errorf("%s: %q, want %q", name, got, x.want)
		}
	}
	long := parseLog(strings.NewReader(`{"level":"error","msg":"` + strings.Repeat("x", 100_000) + `"}`))
	if len(long) > maxMessage+10 {
		t.Errorf("a message of %d bytes", len(long))
	}
}

func TestFailureKinds(t *testing.T) {
	for text, is := range map[string]func(error) bool{
		`runc create failed: unable to start container process: exec: "x": executable file not found in $PATH`: errdefs.IsNotFound,
		"executable file `x` not found in $PATH: No such file or directory":                                    errdefs.IsNotFound,
		"container does not exist":                        errdefs.IsNotFound,
		"container with given ID already exists":          errdefs.IsAlreadyExists,
		"container `c1` already exists":                   errdefs.IsAlreadyExists,
		"cannot exec in a stopped container":              errdefs.IsFailedPrecondition,
		"container not running":                           errdefs.IsFailedPrecondition,
		"exec: \"/bin/x\": permission denied":             errdefs.IsPermissionDenied,
		"open `/x`: Permission denied":                    errdefs.IsPermissionDenied,
		"write /sys/fs/cgroup/x: no space left on device": errdefs.IsResourceExhausted,
	} {
		err := failure("runc create", text)
		if !is(err) || !strings.Contains(err.Error(), text) {
			t.Errorf("%v", err)
		}
	}
	if err := failure("runc create", "mkdir /x: file already exists"); errdefs.IsAlreadyExists(err) {
		t.Error("only the container itself counts as already there: its cleaning up is skipped")
	}
}

func TestEnviron(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/x")
	t.Setenv("LISTEN_FDS", "3")
	t.Setenv("KEPT", "yes")
	env := "\n" + strings.Join(environ(), "\n") + "\n"
	if strings.Contains(env, "NOTIFY_SOCKET") || strings.Contains(env, "LISTEN_FDS") || !strings.Contains(env, "\nKEPT=yes\n") {
		t.Error(env)
	}
}

const runcFeatures = `{"ociVersionMin":"1.0.0","ociVersionMax":"1.0.2-dev","hooks":["prestart","createRuntime","poststop"],
"mountOptions":["ro","rro","bind"],"linux":{"namespaces":["pid","user","mount"],"capabilities":["CAP_CHOWN"],
"seccomp":{"enabled":true,"actions":["SCMP_ACT_ALLOW","SCMP_ACT_ERRNO"],"knownFlags":["SECCOMP_FILTER_FLAG_LOG"]},
"apparmor":{"enabled":false},"selinux":{"enabled":true}}}`

func TestRefuse(t *testing.T) {
	old, ok := parseFeatures([]byte(runcFeatures))
	if !ok {
		t.Fatal("features")
	}
	plain := capability{version: version{1, 0, 0}} // no features command
	newest := capability{version: version{1, 3, 0}}
	linux := func(f func(*specs.Linux)) func(*specs.Spec) { return func(s *specs.Spec) { f(s.Linux) } }
	for name, x := range map[string]struct {
		change             func(*specs.Spec)
		old, plain, newest bool // refused
		says               string
	}{
		"nothing":       {func(*specs.Spec) {}, false, false, false, ""},
		"domainname":    {func(s *specs.Spec) { s.Domainname = "x" }, true, true, false, "domainname"},
		"scheduler":     {func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{} }, true, true, false, "process.scheduler"},
		"ioPriority":    {func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{} }, true, true, false, "process.ioPriority"},
		"affinity":      {func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{} }, true, true, false, "execCPUAffinity"},
		"apparmor":      {func(s *specs.Spec) { s.Process.ApparmorProfile = "p" }, true, false, false, "apparmorProfile"},
		"selinux":       {func(s *specs.Spec) { s.Process.SelinuxLabel = "l" }, false, false, false, ""},
		"time":          {linux(func(l *specs.Linux) { l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: "time"}) }), true, true, false, "namespaces time"},
		"unknown hook":  {func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststart: []specs.Hook{{Path: "/x"}}} }, true, false, false, "hooks.poststart"},
		"known hook":    {func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/x"}}} }, false, false, false, ""},
		"rro":           {func(s *specs.Spec) { s.Mounts = []specs.Mount{{Options: []string{"rro"}}} }, false, false, false, ""},
		"rnodev":        {func(s *specs.Spec) { s.Mounts = []specs.Mount{{Destination: "/v", Options: []string{"rnodev"}}} }, true, false, false, "mounts[0] (/v) option rnodev"},
		"idmap":         {func(s *specs.Spec) { s.Mounts = []specs.Mount{{UIDMappings: make([]specs.LinuxIDMapping, 1)}} }, true, true, true, "uidMappings"},
		"netDevices":    {linux(func(l *specs.Linux) { l.NetDevices = map[string]specs.LinuxNetDevice{"a": {}} }), true, true, false, "netDevices"},
		"personality":   {linux(func(l *specs.Linux) { l.Personality = &specs.LinuxPersonality{} }), true, true, false, "personality"},
		"seccomp":       {linux(func(l *specs.Linux) { l.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow} }), false, false, false, ""},
		"seccomp flag":  {linux(func(l *specs.Linux) { l.Seccomp = &specs.LinuxSeccomp{Flags: []specs.LinuxSeccompFlag{"NEW"}} }), true, false, false, "seccomp.flags NEW"},
		"seccomp trace": {linux(func(l *specs.Linux) { l.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActTrace} }), true, false, false, "defaultAction SCMP_ACT_TRACE"},
		"burst":         {linux(func(l *specs.Linux) { l.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{Burst: new(uint64)}} }), true, true, false, "cpu.burst"},
	} {
		for who, y := range map[string]struct {
			c       capability
			refused bool
		}{"old": {old, x.old}, "plain": {plain, x.plain}, "newest": {newest, x.newest}} {
			s := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}}
			x.change(s)
			err := (&Engine{path: "/bin/runc", features: y.c}).refuse(s)
			if y.refused != errdefs.IsNotImplemented(err) || !y.refused && err != nil {
				t.Errorf("%s: %s: %v", name, who, err)
			} else if err != nil && !strings.Contains(err.Error(), x.says) {
				t.Errorf("%s: %s: %v does not name %q", name, who, err, x.says)
			}
		}
	}
}

func TestParseFeaturesGarbage(t *testing.T) {
	for _, text := range []string{"", "{}", "null", "[]", "unknown command", `{"ociVersionMax":"x"}`, `{"ociVersionMax":5}`} {
		if _, ok := parseFeatures([]byte(text)); ok {
			t.Errorf("%q was taken", text)
		}
	}
}

func TestUnknownCapability(t *testing.T) {
	for name, bad := range map[string]bool{"CAP_CHOWN": false, "CAP_CHECKPOINT_RESTORE": false, "CAP_NOSUCH": true, "chown": true, "": true} {
		err := knownCapabilities(&specs.LinuxCapabilities{Ambient: []string{name}})
		if bad != errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestCgroupMounts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mountinfo")
	text := "30 25 0:26 / /sys/fs/cgroup rw - tmpfs cgroup rw,mode=755\n31 30 0:27 / /sys/fs/cgroup/pids rw shared:9 - cgroup cgroup rw,pids\n" +
		"32 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\ngarbage\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := cgroupMounts(file)
	if err != nil || strings.Join(got, " ") != "/sys/fs/cgroup/pids /sys/fs/cgroup/unified" {
		t.Error(got, err)
	}
	for _, path := range []string{"", "/", "..", "slice:prefix:name"} {
		if dirs, err := cgroupDirs(path); err != nil || len(dirs) > 0 {
			t.Errorf("%q: %v %v", path, dirs, err)
		}
	}
}
