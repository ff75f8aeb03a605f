package enginetest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var processTests = []test{
	{"process/env", nil, env},
	{"process/cwd", nil, cwd},
	{"process/missing cwd", []Feature{MissingCwd}, missingCwd},
	{"process/cwd outside the root", nil, hostileCwd},
	{"process/user", nil, user},
	{"process/umask", nil, umask},
	{"process/personality", []Feature{Personality}, personality},
	{"process/scheduler", []Feature{Scheduler}, scheduler},
	{"process/io priority", []Feature{IOPriority}, ioPriority},
}

func env(t *testing.T, s *suite) {
	want := []string{"A=1", "EMPTY=", "PATH=/bin", "SPACE=a b", "WITH=a=b"}
	out := s.sh(t, "", program("env"), func(c *specs.Spec) { c.Process.Env = want })
	got := strings.Split(out, "\n")
	got = slices.DeleteFunc(got, func(kv string) bool { return strings.HasPrefix(kv, "HOME=") }) // runtimes add it
	slices.Sort(got)
	equal(t, "inside", strings.Join(got, "\n"), strings.Join(want, "\n"))
}

func cwd(t *testing.T, s *suite) {
	b := s.live(t, "pwd; readlink /proc/self/cwd", func(c *specs.Spec) { c.Process.Cwd = "/data/sub" })
	equal(t, "inside", b.out.String(), "/data/sub\n/data/sub\nready\n")
	link, err := os.Readlink(filepath.Join("/proc", status(t, b.pid(), "Pid"), "cwd"))
	if err != nil || link != "/data/sub" {
		t.Errorf("outside: %q %v", link, err)
	}
}

func missingCwd(t *testing.T, s *suite) {
	equal(t, "inside", s.sh(t, "pwd; stat -c '%F %u' .", func(c *specs.Spec) { c.Process.Cwd = "/made/for/me" }), "/made/for/me\ndirectory 0")
}

// hostileCwd: a working directory by way of a leaked fd (CVE-2024-21626) or of a link must be in the container or be refused.
func hostileCwd(t *testing.T, s *suite) {
	for _, dir := range []string{"/proc/self/fd/7", "/proc/self/fd/8/../../..", "/proc/1/cwd"} {
		b := s.box(t, s.spec("ls -d "+s.base+" 2>/dev/null; ls ../../../../../.."+s.base+" 2>/dev/null; echo end", func(c *specs.Spec) { c.Process.Cwd = dir }))
		if b.launch() != nil {
			continue
		}
		b.stdin.Close()
		b.code()
		equal(t, dir, b.text(), "end")
	}
}

func user(t *testing.T, s *suite) {
	b := s.live(t, "id -u; id -g; cat /proc/self/status; touch /home/joe/x && stat -c %u:%g /home/joe/x", func(c *specs.Spec) {
		c.Process.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{5, 2000, 70000}}
		c.Process.Capabilities = &specs.LinuxCapabilities{}
	})
	out := b.out.String()
	contains(t, "ids", out, "1000\n1000\n")
	contains(t, "file made", out, "\n1000:1000\n")
	equal(t, "groups inside", statusField(out, "Groups"), "5 2000 70000")
	equal(t, "Uid", status(t, b.pid(), "Uid"), "1000 1000 1000 1000")
	equal(t, "Gid", status(t, b.pid(), "Gid"), "1000 1000 1000 1000")
	equal(t, "Groups", status(t, b.pid(), "Groups"), "5 2000 70000")

	b = s.live(t, "cat /proc/self/status")
	equal(t, "root's groups", status(t, b.pid(), "Groups"), "")
}

func umask(t *testing.T, s *suite) {
	const script = "umask; touch /tmp/f; stat -c %a /tmp/f"
	equal(t, "027", s.sh(t, script, func(c *specs.Spec) { c.Process.User.Umask = ptr(uint32(0o027)) }), "0027\n640")
	equal(t, "none", s.sh(t, script), "0022\n644")
}

func personality(t *testing.T, s *suite) {
	b := s.live(t, "uname -m", func(c *specs.Spec) { c.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32} })
	if strings.Contains(b.out.String(), "64") {
		t.Errorf("uname -m: %s", b.out)
	}
	equal(t, "personality", read(t, filepath.Join("/proc", status(t, b.pid(), "Pid"), "personality")), "00000008")
}

func scheduler(t *testing.T, s *suite) {
	b := s.live(t, "", func(c *specs.Spec) { c.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 7} })
	// proc_pid_stat(5): field 19 is nice, 41 is the policy; the name in parentheses may hold blanks.
	stat := read(t, filepath.Join("/proc", status(t, b.pid(), "Pid"), "stat"))
	fields := strings.Fields(stat[strings.LastIndex(stat, ")")+2:])
	equal(t, "nice", fields[19-3], "7")
	equal(t, "policy", fields[41-3], "3") // SCHED_BATCH, sched(7)
}

func ioPriority(t *testing.T, s *suite) {
	out := s.sh(t, "ionice -p 1", func(c *specs.Spec) {
		c.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
	})
	equal(t, "inside", out, "best-effort: prio 6")
}
