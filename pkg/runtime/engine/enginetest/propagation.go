package enginetest

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
)

var propagationTests = []test{
	{"propagation/rprivate", nil, func(t *testing.T, s *suite) { propagate(t, s, "rprivate", false, false) }},
	{"propagation/rslave", nil, func(t *testing.T, s *suite) { propagate(t, s, "rslave", true, false) }},
	{"propagation/rshared", nil, func(t *testing.T, s *suite) { propagate(t, s, "rshared", true, true) }},
	{"propagation/root", []Feature{SharedRoot}, rootPropagation},
	{"propagation/root on a shared mount", nil, rootOnShared},
}

// propagate binds a shared mount of the host and mounts something on either side of it.
func propagate(t *testing.T, s *suite, option string, in, out bool) {
	host := s.hostMount(t, unix.MS_SHARED)
	b := s.box(t, s.spec("echo up; read x; mount -t tmpfs -o size=64k t /vol/inner && echo mounted; cat >/dev/null",
		bind(host, "/vol", "rbind", option), addCaps("CAP_SYS_ADMIN"), func(c *specs.Spec) {
			c.Linux.RootfsPropagation = option // as CRI asks for: the root must not cut what comes through it
		})).start().ready("up")
	m := mountAt(t, b.pid(), "/vol")
	equal(t, "shared", strings.Contains(m.optional, "shared:"), out)
	equal(t, "a slave", strings.Contains(m.optional, "master:"), in && !out)

	if err := unix.Mount("tmpfs", filepath.Join(host, "host"), "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	equal(t, "the host's mount seen inside", mounted(t, b.pid(), "/vol/host"), in)

	if _, err := io.WriteString(b.stdin, "go\n"); err != nil {
		t.Fatal(err)
	}
	b.ready("mounted")
	equal(t, "the container's mount seen on the host", mounted(t, os.Getpid(), filepath.Join(host, "inner")), out)
	equal(t, "and inside", mounted(t, b.pid(), "/vol/inner"), true)
	b.finish()
}

func mounted(t *testing.T, pid int, point string) bool {
	t.Helper()
	for _, m := range mountsOf(t, pid) {
		if m.point == point {
			return true
		}
	}
	return false
}

func rootPropagation(t *testing.T, s *suite) {
	for kind, want := range map[string]string{"": "", "rprivate": "", "private": "", "shared": "shared:", "rshared": "shared:"} {
		b := s.live(t, "", func(c *specs.Spec) { c.Linux.RootfsPropagation = kind })
		got := mountAt(t, b.pid(), "/").optional
		if want == "" && got != "" || !strings.HasPrefix(got, want) {
			t.Errorf("rootfsPropagation %q: the root is %q", kind, got)
		}
	}
}

// rootOnShared: the root is a directory of a mount that is shared, as all are on a machine with systemd.
func rootOnShared(t *testing.T, s *suite) {
	dir := s.hostDir(t)
	if err := unix.Mount(s.layer, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	b := s.box(t, s.spec("echo up; cat >/dev/null"))
	b.cfg.Rootfs = rootfs.Rootfs{Lower: []string{dir}}
	b.start().ready("up")
	equal(t, "the root is a peer of the host's", strings.Contains(mountAt(t, b.pid(), "/").optional, "shared:"), false)
	for _, m := range mountsOf(t, os.Getpid()) {
		if strings.HasPrefix(m.point, dir+"/") {
			t.Errorf("a mount of the container is on the host: %s", m.point)
		}
	}
	b.finish()
}
