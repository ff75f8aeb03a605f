package enginetest

import (
	"fmt"
	"os"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var limitTests = []test{
	{"limits/rlimits", nil, rlimits},
	{"limits/oom_score_adj", nil, oomScoreAdj},
	{"limits/sysctl", nil, sysctls},
	{"limits/sysctl of the host", nil, hostSysctl},
}

// rlimits only lowers: the machine may lack CAP_SYS_RESOURCE.
func rlimits(t *testing.T, s *suite) {
	b := s.live(t, "ulimit -Sn; ulimit -Hn; ulimit -Sc", func(c *specs.Spec) {
		c.Process.Rlimits = []specs.POSIXRlimit{
			{Type: "RLIMIT_NOFILE", Soft: 256, Hard: 512}, {Type: "RLIMIT_CORE", Soft: 0, Hard: 0}, {Type: "RLIMIT_STACK", Soft: 1 << 20, Hard: 2 << 20},
		}
	})
	equal(t, "inside", b.out.String(), "256\n512\n0\nready\n")
	limits := strings.Join(strings.Fields(read(t, fmt.Sprintf("/proc/%d/limits", b.pid()))), " ")
	contains(t, "outside", limits, "Max open files 256 512 files")
	contains(t, "outside", limits, "Max stack size 1048576 2097152 bytes")
}

func oomScoreAdj(t *testing.T, s *suite) {
	for _, n := range []int{500, 1000} {
		b := s.live(t, "cat /proc/self/oom_score_adj", func(c *specs.Spec) { c.Process.OOMScoreAdj = &n })
		equal(t, "inside", b.out.String(), fmt.Sprintf("%d\nready\n", n))
		equal(t, "outside", read(t, fmt.Sprintf("/proc/%d/oom_score_adj", b.pid())), fmt.Sprint(n))
	}
}

func sysctls(t *testing.T, s *suite) {
	before := read(t, "/proc/sys/kernel/shm_rmid_forced") + read(t, "/proc/sys/kernel/msgmax")
	out := s.sh(t, "cd /proc/sys; cat kernel/shm_rmid_forced kernel/msgmax net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range", func(c *specs.Spec) {
		c.Linux.Sysctl = map[string]string{
			"kernel.shm_rmid_forced": "1", "kernel.msgmax": "4242", "net.ipv4.ip_unprivileged_port_start": "77", "net.ipv4.ping_group_range": "0 99",
		}
	})
	equal(t, "inside", strings.ReplaceAll(out, "\t", " "), "1\n4242\n77\n0 99")
	equal(t, "the host's", read(t, "/proc/sys/kernel/shm_rmid_forced")+read(t, "/proc/sys/kernel/msgmax"), before)
}

// hostSysctl: one that belongs to no namespace of the container must be refused.
func hostSysctl(t *testing.T, s *suite) {
	for name, change := range map[string]func(*specs.Spec){
		"vm.swappiness": nil,
		// The test's own network namespace stands for the host's.
		"net.ipv4.ip_unprivileged_port_start": noNamespace(specs.NetworkNamespace),
		"kernel.msgmax":                       noNamespace(specs.IPCNamespace),
	} {
		path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
		before := read(t, path)
		b := s.box(t, s.spec("true", func(c *specs.Spec) {
			if change != nil {
				change(c)
				c.Mounts = without(c.Mounts, "/sys", "/dev/mqueue")
			}
			c.Linux.Sysctl = map[string]string{name: before}
		}))
		if b.launch() == nil {
			t.Errorf("%s is not refused", name)
		}
		if after, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(after)) != before {
			t.Errorf("%s changed from %s to %s", name, before, after)
		}
	}
}
