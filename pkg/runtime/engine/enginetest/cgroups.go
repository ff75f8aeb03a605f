package enginetest

import (
	"fmt"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var cgroupTests = []test{
	{"cgroup/membership", nil, membership},
	{"cgroup/namespace", nil, cgroupNamespace},
	{"cgroup/host's namespace", nil, cgroupHostNamespace},
	{"cgroup/pids limit", nil, pidsLimit},
}

// controllers are those in which every engine has to put its processes, where they are mounted.
var controllers = []string{"pids", "memory", "cpu", "cpuacct", "freezer", "devices"}

// places maps the hierarchies in the text of a /proc/<pid>/cgroup to the path in them.
func places(text string) map[string]string {
	found := map[string]string{}
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		for name := range strings.SplitSeq(f[1], ",") {
			found[name] = f[2]
		}
	}
	return found
}

func membership(t *testing.T, s *suite) {
	b := s.box(t, s.spec("cat >/dev/null")).create()
	for _, when := range []string{"created", "running"} {
		got := places(read(t, fmt.Sprintf("/proc/%d/cgroup", b.pid())))
		for _, c := range controllers {
			if at, ok := got[c]; ok {
				equal(t, when+": "+c, at, b.cgroup())
			}
		}
		if when == "created" {
			b.start()
		}
	}
	b.finish()
}

func cgroupNamespace(t *testing.T, s *suite) {
	got := places(s.sh(t, "cat /proc/self/cgroup"))
	for _, c := range controllers {
		if at, ok := got[c]; ok {
			equal(t, c, at, "/")
		}
	}
}

func cgroupHostNamespace(t *testing.T, s *suite) {
	b := s.box(t, s.spec("cat /proc/self/cgroup", noNamespace(specs.CgroupNamespace))).start()
	got := places(b.finish())
	for _, c := range controllers {
		if at, ok := got[c]; ok {
			equal(t, c, at, b.cgroup())
		}
	}
}

func pidsLimit(t *testing.T, s *suite) {
	out := s.sh(t, `for i in $(seq 40); do sleep 2 & done 2>&1 | grep -q "can't fork" && echo limited`, func(c *specs.Spec) {
		c.Linux.Resources.Pids = &specs.LinuxPids{Limit: ptr(int64(30))} // an OCI runtime's own threads count too
	})
	equal(t, "inside", out, "limited")
}
