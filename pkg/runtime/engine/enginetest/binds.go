package enginetest

import (
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var bindTests = []test{
	{"binds/directory and file", nil, bindBoth},
	{"binds/recursion", nil, bindRecursion},
	{"binds/options", nil, bindOptions},
	{"binds/read-only", nil, bindReadOnly},
	{"binds/recursive read-only", []Feature{RecursiveRO}, bindRecursiveReadOnly},
	{"binds/source is a link", nil, bindLinkSource},
	{"binds/id-mapped", []Feature{IDMappedMounts}, bindIDMapped},
}

// hostMount makes a directory of the host that holds a tmpfs with a further tmpfs "sub" in it; kind is its propagation.
func (s *suite) hostMount(t *testing.T, kind uintptr) string {
	t.Helper()
	dir := s.hostDir(t)
	mount := func(at string) {
		if err := unix.Mount("tmpfs", at, "tmpfs", 0, "size=64k"); err != nil {
			t.Fatalf("tmpfs on %s: %v", at, err)
		}
		if err := unix.Mount("", at, "", kind, ""); err != nil {
			t.Fatalf("propagation of %s: %v", at, err)
		}
	}
	mount(dir)
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	for _, d := range []string{"sub", "host", "inner"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount(filepath.Join(dir, "sub"))
	for _, f := range []string{"file", "sub/file"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte(f+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func bindBoth(t *testing.T, s *suite) {
	host := s.hostDir(t)
	out := s.sh(t, `cat /vol/file /etc/one; echo new > /vol/made; echo changed > /etc/one`, bind(host, "/vol"), bind(host+"/file", "/etc/one"))
	equal(t, "inside", out, "host\nhost")
	equal(t, "a file made inside", read(t, host+"/made"), "new")
	equal(t, "a file changed inside", read(t, host+"/file"), "changed")
}

func bindRecursion(t *testing.T, s *suite) {
	host := s.hostMount(t, unix.MS_PRIVATE)
	equal(t, "bind", s.sh(t, "ls /vol/sub", bind(host, "/vol", "bind")), "")
	equal(t, "rbind", s.sh(t, "ls /vol/sub", bind(host, "/vol", "rbind")), "file")
}

func bindOptions(t *testing.T, s *suite) {
	host := s.hostDir(t)
	b := s.live(t, "", bind(host, "/vol", "bind", "nosuid", "nodev", "noexec"), bind(host, "/plain", "bind"))
	for _, o := range []string{"rw", "nosuid", "nodev", "noexec"} {
		if m := mountAt(t, b.pid(), "/vol"); !has(m.options, o) {
			t.Errorf("no %s in %s", o, m.options)
		}
	}
	for _, o := range []string{"ro", "noexec"} {
		if m := mountAt(t, b.pid(), "/plain"); has(m.options, o) {
			t.Errorf("%s in %s was not asked for", o, m.options)
		}
	}
}

const tryWrite = `for f in /vol/new /vol/sub/new; do if touch $f 2>/dev/null; then echo written; else echo denied; fi; done`

func bindReadOnly(t *testing.T, s *suite) {
	host := s.hostMount(t, unix.MS_PRIVATE)
	equal(t, "ro is not recursive", s.sh(t, tryWrite, bind(host, "/vol", "rbind", "ro")), "denied\nwritten")
	equal(t, "the host's mount", s.sh(t, tryWrite, bind(host, "/vol", "rbind")), "written\nwritten")
	equal(t, "a file", s.sh(t, "echo x 2>/dev/null > /etc/one || echo denied", bind(host+"/file", "/etc/one", "bind", "ro")), "denied")
}

func bindRecursiveReadOnly(t *testing.T, s *suite) {
	host := s.hostMount(t, unix.MS_PRIVATE)
	b := s.live(t, tryWrite, bind(host, "/vol", "rbind", "rro"))
	equal(t, "inside", b.out.String(), "denied\ndenied\nready\n")
	for _, p := range []string{"/vol", "/vol/sub"} {
		if m := mountAt(t, b.pid(), p); !has(m.options, "ro") {
			t.Errorf("%s has %s", p, m.options)
		}
	}
}

// bindLinkSource: kubelet resolves links of the host; what is left of them is followed on the host's side.
func bindLinkSource(t *testing.T, s *suite) {
	host := s.hostDir(t)
	if err := os.Symlink("file", host+"/link"); err != nil {
		t.Fatal(err)
	}
	equal(t, "inside", s.sh(t, "cat /etc/one; stat -c %F /etc/one", bind(host+"/link", "/etc/one", "bind")), "host\nregular file")
}

func bindIDMapped(t *testing.T, s *suite) {
	host := s.hostDir(t)
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 5000, Size: 1000}}
	out := s.sh(t, "stat -c '%u %g' /vol/file /plain/file", withMount(specs.Mount{
		Destination: "/vol", Type: "bind", Source: host, Options: []string{"rbind"}, UIDMappings: maps, GIDMappings: maps,
	}), bind(host, "/plain"))
	equal(t, "owner as seen inside", out, "5000 5000\n0 0")
}
