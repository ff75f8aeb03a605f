package enginetest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var mountTests = []test{
	{"mounts/types and options", nil, mountTypes},
	{"mounts/tmpfs", nil, tmpfsOptions},
	{"mounts/usable", nil, mountsUsable},
	{"mounts/only what was asked for", nil, mountsAskedFor},
	{"mounts/order", nil, mountOrder},
	{"mounts/targets are made", nil, mountTargets},
	{"mounts/cgroup", nil, cgroupMount},
}

func mountTypes(t *testing.T, s *suite) {
	b := s.live(t, "cat /proc/self/mountinfo")
	in := parseMounts(b.out.String())
	for _, x := range []struct{ point, fstype, options string }{
		{"/proc", "proc", "rw,nosuid,nodev,noexec"},
		{"/dev", "tmpfs", "rw,nosuid"},
		{"/dev/pts", "devpts", "rw,nosuid,noexec"},
		{"/dev/mqueue", "mqueue", "rw,nosuid,nodev,noexec"},
		{"/dev/shm", "tmpfs", "rw,nosuid,nodev,noexec"},
		{"/sys", "sysfs", "ro,nosuid,nodev,noexec"},
	} {
		m := mountAt(t, b.pid(), x.point)
		equal(t, x.point+" type", m.fstype, x.fstype)
		for o := range strings.SplitSeq(x.options, ",") {
			if !has(m.options, o) {
				t.Errorf("%s: no %s in %s", x.point, o, m.options)
			}
		}
		equal(t, x.point+" propagation", m.optional, "")
		if !slices.Contains(in, m) {
			t.Errorf("%s looks different from inside", x.point)
		}
	}
	pts := mountAt(t, b.pid(), "/dev/pts")
	for _, o := range []string{"gid=5", "mode=620", "ptmxmode=666"} {
		if !has(pts.super, o) {
			t.Errorf("/dev/pts: no %s in %s", o, pts.super)
		}
	}
	if m := mountAt(t, b.pid(), "/dev"); has(m.options, "relatime") {
		t.Errorf("/dev: strictatime was asked for, it has %s", m.options)
	}
}

func tmpfsOptions(t *testing.T, s *suite) {
	b := s.live(t, `stat -c '%a %u %g' /mnt/t; dd if=/dev/zero of=/mnt/t/f bs=64k count=32 2>&1 | grep -o 'No space left'
cp() { cat "$1" > "$2"; chmod 755 "$2"; }; cp /usr/bin/script /mnt/t/x; rm /mnt/t/f; cp /usr/bin/script /mnt/t/x; /mnt/t/x 2>&1 | grep -o 'Permission denied'`,
		withMount(specs.Mount{Destination: "/mnt/t", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m", "mode=0711", "uid=7", "gid=8", "noexec", "nodev", "noatime"}}))
	equal(t, "inside", strings.TrimSuffix(strings.TrimSpace(b.out.String()), "\nready"), "711 7 8\nNo space left\nPermission denied")
	m := mountAt(t, b.pid(), "/mnt/t")
	for _, o := range []string{"noexec", "nodev", "noatime"} {
		if !has(m.options, o) {
			t.Errorf("no %s in %s", o, m.options)
		}
	}
	if !has(m.super, "size=1024k") {
		t.Errorf("size: %s", m.super)
	}
}

func mountsUsable(t *testing.T, s *suite) {
	out := s.sh(t, `touch /dev/mqueue/q && ls /dev/mqueue
echo x > /dev/shm/f && cat /dev/shm/f
stat -c %a /dev/shm
for l in ptmx fd stdin stdout stderr; do readlink /dev/$l; done
[ -c /dev/pts/ptmx ] && echo ptmx
for p in /proc/[0-9]*; do echo ${p#/proc/}; done | sort -n | head -n 1
ls /sys/class/net`)
	want := []string{"q", "x", "1777", "pts/ptmx", "/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2", "ptmx", "1", "lo"}
	equal(t, "inside", out, strings.Join(want, "\n"))
}

// mountsAskedFor: what the process sees is exactly what the spec lists, and no host path shows but in overlay's options.
func mountsAskedFor(t *testing.T, s *suite) {
	b := s.live(t, "")
	want := []string{"/"}
	for _, m := range b.cfg.Spec.Mounts {
		want = append(want, m.Destination)
	}
	var got []string
	for _, m := range mountsOf(t, b.pid()) {
		got = append(got, m.point)
		if strings.Contains(m.root+m.point+m.source, s.base) {
			t.Errorf("a host path shows: %+v", m)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("mount points %v, want %v", got, want)
	}
}

func mountOrder(t *testing.T, s *suite) {
	tmp := func(at string) func(*specs.Spec) {
		return withMount(specs.Mount{Destination: at, Type: "tmpfs", Source: "tmpfs", Options: []string{"size=64k"}})
	}
	b := s.live(t, "ls /mnt; ls /mnt/a", tmp("/mnt"), tmp("/mnt/a"), tmp("/mnt/a/b"))
	equal(t, "inside", b.out.String(), "a\nb\nready\n")
	for _, p := range []string{"/mnt", "/mnt/a", "/mnt/a/b"} {
		equal(t, p, mountAt(t, b.pid(), p).fstype, "tmpfs")
	}
}

func mountTargets(t *testing.T, s *suite) {
	host := s.hostDir(t)
	out := s.sh(t, "cat /new/deep/dir/file /new/file /data/sub/other; stat -c %F /new/deep/dir /new/file",
		bind(host, "/new/deep/dir"), bind(host+"/file", "/new/file"), bind(host+"/file", "/data/sub/other"))
	equal(t, "inside", out, "host\nhost\nhost\ndirectory\nregular file")
}

// hostDir makes a directory of the host with a file in it.
func (s *suite) hostDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(s.base, "host-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// cgroupMount: the container sees its own cgroup, read-only, and nothing of the host's tree.
func cgroupMount(t *testing.T, s *suite) {
	b := s.live(t, `for d in /sys/fs/cgroup/pids /sys/fs/cgroup; do [ -f $d/cgroup.procs ] && grep -qx 1 $d/cgroup.procs && echo own && break; done
mkdir $d/x 2>/dev/null || echo readonly`,
		withMount(specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}}))
	equal(t, "inside", b.out.String(), "own\nreadonly\nready\n")
}
