package enginetest

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var pathTests = []test{
	{"paths/masked", nil, maskedPaths},
	{"paths/read-only", nil, readonlyPaths},
	{"paths/read-only root", nil, readonlyRoot},
	{"paths/writable root", nil, writableRoot},
}

func maskedPaths(t *testing.T, s *suite) {
	b := s.live(t, `wc -c < /proc/timer_list; wc -c < /data/file; stat -c '%F %t:%T' /proc/timer_list
ls -A /sys/fs /data/sub; touch /data/sub/x 2>/dev/null || echo denied`, func(c *specs.Spec) {
		c.Linux.MaskedPaths = []string{"/proc/timer_list", "/data/file", "/sys/fs", "/data/sub", "/no/such/path"}
	})
	equal(t, "inside", b.out.String(), "0\n0\ncharacter special file 1:3\n/data/sub:\n\n/sys/fs:\ndenied\nready\n")
	if !has(mountAt(t, b.pid(), "/sys/fs").options, "ro") {
		t.Error("a masked directory is writable")
	}
	for _, m := range mountsOf(t, b.pid()) {
		if m.point == "/no/such/path" {
			t.Error("a missing path was made to be masked")
		}
	}
}

func readonlyPaths(t *testing.T, s *suite) {
	b := s.live(t, `echo x 2>/dev/null > /proc/sys/kernel/hostname || echo denied
touch /data/x 2>/dev/null || echo denied; cat /data/file; echo y 2>/dev/null > /etc/passwd || echo denied`, func(c *specs.Spec) {
		c.Linux.ReadonlyPaths = []string{"/proc/sys", "/data", "/etc/passwd", "/no/such/path"}
	})
	equal(t, "inside", b.out.String(), "denied\ndenied\nlayer\ndenied\nready\n")
	for _, p := range []string{"/proc/sys", "/data", "/etc/passwd"} {
		if m := mountAt(t, b.pid(), p); !has(m.options, "ro") {
			t.Errorf("%s: %s", p, m.options)
		}
	}
	if s.lacks(t, ReadonlyFlags) {
		return
	}
	if m := mountAt(t, b.pid(), "/proc/sys"); !has(m.options, "nosuid") || !has(m.options, "noexec") {
		t.Errorf("/proc/sys lost the flags of /proc: %s", m.options)
	}
}

func readonlyRoot(t *testing.T, s *suite) {
	host := s.hostDir(t)
	b := s.live(t, `touch /x 2>/dev/null || echo denied; touch /etc/passwd 2>/dev/null || echo denied
touch /dev/shm/x && echo shm; touch /vol/x && echo vol; touch /fresh/x && echo fresh`,
		bind(host, "/vol"), withMount(specs.Mount{Destination: "/fresh", Type: "tmpfs", Source: "tmpfs"}),
		func(c *specs.Spec) { c.Root.Readonly = true })
	equal(t, "inside", b.out.String(), "denied\ndenied\nshm\nvol\nfresh\nready\n")
	if m := mountAt(t, b.pid(), "/"); !has(m.options, "ro") {
		t.Errorf("the root is %s", m.options)
	}
}

func writableRoot(t *testing.T, s *suite) {
	equal(t, "first", s.sh(t, "echo mine > /data/file; cat /data/file; rm /bin/tail; ls /bin/tail 2>/dev/null | wc -l"), "mine\n0")
	equal(t, "the layer seen by the next one", s.sh(t, "cat /data/file; ls /bin/tail"), "layer\n/bin/tail")
}
