package enginetest

import (
	"fmt"
	"os"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var namespaceTests = []test{
	{"namespaces/new", nil, newNamespaces},
	{"namespaces/host", nil, hostNamespaces},
	{"namespaces/joined", nil, joinedNamespaces},
	{"namespaces/pid shared with another container", nil, sharedPids},
	{"namespaces/host pid", nil, hostPids},
	{"namespaces/time", []Feature{TimeNamespace}, timeNamespace},
	{"namespaces/hostname", nil, hostname},
	{"namespaces/domainname", []Feature{Domainname}, domainname},
}

// kinds pairs the spec's names with those in /proc/<pid>/ns.
var kinds = map[specs.LinuxNamespaceType]string{
	specs.PIDNamespace: "pid", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts", specs.MountNamespace: "mnt",
	specs.NetworkNamespace: "net", specs.CgroupNamespace: "cgroup",
}

// inside lists the container's own view of its namespaces.
const inside = `for n in pid ipc uts mnt net cgroup; do echo $n $(readlink /proc/self/ns/$n); done`

func newNamespaces(t *testing.T, s *suite) {
	b := s.live(t, inside)
	for _, ns := range kinds {
		got := nsOf(t, b.pid(), ns)
		if got == nsOf(t, os.Getpid(), ns) {
			t.Errorf("%s is the host's", ns)
		}
		contains(t, "inside", b.out.String(), ns+" "+got)
	}
	for _, ns := range []string{"user", "time"} {
		equal(t, ns+" (not asked for)", nsOf(t, b.pid(), ns), nsOf(t, os.Getpid(), ns))
	}
	contains(t, "NSpid", status(t, b.pid(), "NSpid"), " 1")
}

func hostNamespaces(t *testing.T, s *suite) {
	for kind, ns := range kinds {
		if kind == specs.MountNamespace || kind == specs.PIDNamespace {
			continue
		}
		b := s.live(t, "readlink /proc/self/ns/"+ns, noNamespace(kind), func(c *specs.Spec) {
			if kind == specs.IPCNamespace || kind == specs.NetworkNamespace { // mounting them needs a namespace of one's own
				c.Mounts = without(c.Mounts, "/dev/mqueue", "/sys")
			}
		})
		equal(t, ns, nsOf(t, b.pid(), ns), nsOf(t, os.Getpid(), ns))
		contains(t, "inside", b.out.String(), nsOf(t, b.pid(), ns))
	}
}

func without(mounts []specs.Mount, points ...string) []specs.Mount {
	var kept []specs.Mount
	for _, m := range mounts {
		if !strings.Contains(" "+strings.Join(points, " ")+" ", " "+m.Destination+" ") {
			kept = append(kept, m)
		}
	}
	return kept
}

func joinedNamespaces(t *testing.T, s *suite) {
	first := s.live(t, "", func(c *specs.Spec) { c.Hostname = "first" })
	join := []func(*specs.Spec){}
	for _, kind := range []specs.LinuxNamespaceType{specs.IPCNamespace, specs.UTSNamespace, specs.NetworkNamespace} {
		join = append(join, namespace(kind, nsPath(first.pid(), kinds[kind])))
	}
	b := s.live(t, inside+"; hostname", join...)
	for _, ns := range []string{"ipc", "uts", "net"} {
		equal(t, ns, nsOf(t, b.pid(), ns), nsOf(t, first.pid(), ns))
		contains(t, "inside", b.out.String(), ns+" "+nsOf(t, first.pid(), ns))
	}
	for _, ns := range []string{"pid", "mnt", "cgroup"} {
		if nsOf(t, b.pid(), ns) == nsOf(t, first.pid(), ns) {
			t.Errorf("%s is shared without being asked for", ns)
		}
	}
	contains(t, "hostname", b.out.String(), "first\n")
}

func sharedPids(t *testing.T, s *suite) {
	first := s.live(t, "echo first > /tmp/mine")
	b := s.live(t, `[ $$ != 1 ] && tr '\0' ' ' < /proc/1/cmdline && echo && cat /proc/1/root/tmp/mine`, addCaps("CAP_SYS_PTRACE"), namespace(specs.PIDNamespace, nsPath(first.pid(), "pid")))
	equal(t, "pid namespace", nsOf(t, b.pid(), "pid"), nsOf(t, first.pid(), "pid"))
	contains(t, "pid 1 as the second one sees it", b.out.String(), "cat \nfirst\n")
	b.finish()
	if first.ended() {
		t.Error("the end of the second container ended the first")
	}
}

func hostPids(t *testing.T, s *suite) {
	script := fmt.Sprintf("cat /proc/%d/comm; echo pid $$", os.Getpid())
	b := s.live(t, script, noNamespace(specs.PIDNamespace))
	equal(t, "pid namespace", nsOf(t, b.pid(), "pid"), nsOf(t, os.Getpid(), "pid"))
	contains(t, "comm of the test's process", b.out.String(), read(t, "/proc/self/comm"))
	contains(t, "own pid", b.out.String(), fmt.Sprintf("pid %d\n", b.pid()))
}

func timeNamespace(t *testing.T, s *suite) {
	const day = 86400
	b := s.live(t, "cut -d. -f1 /proc/uptime; cat /proc/self/timens_offsets", namespace(specs.TimeNamespace, ""), func(c *specs.Spec) {
		c.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1000 * day}, "monotonic": {Secs: 5 * day}}
	})
	if nsOf(t, b.pid(), "time") == nsOf(t, os.Getpid(), "time") {
		t.Error("time is the host's")
	}
	var up int
	if _, err := fmt.Sscan(b.out.String(), &up); err != nil || up < 1000*day {
		t.Errorf("uptime %d s: %v", up, err)
	}
}

func hostname(t *testing.T, s *suite) {
	before, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	out := s.sh(t, "hostname; cat /proc/sys/kernel/hostname", func(c *specs.Spec) { c.Hostname = "box.example" })
	equal(t, "inside", out, "box.example\nbox.example")
	after, _ := os.Hostname()
	equal(t, "the host's name", after, before)
}

func domainname(t *testing.T, s *suite) {
	out := s.sh(t, "cat /proc/sys/kernel/domainname", func(c *specs.Spec) { c.Domainname = "example.org" })
	equal(t, "inside", out, "example.org")
	if read(t, "/proc/sys/kernel/domainname") == "example.org" {
		t.Error("the host's domain name changed")
	}
}
