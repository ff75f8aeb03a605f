package cgroupdriver

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

// unifiedDir makes a cgroup of the cgroup2 hierarchy, which may stand beside v1 ones.
func unifiedDir(t *testing.T) string {
	t.Helper()
	testns.Root(t)
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(mount, &st) != nil || int64(st.Type) != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		dir := filepath.Join(mount, testns.CgroupParent(), "devices")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = os.Remove(dir)
			_ = os.Remove(filepath.Dir(dir)) // when it is the last
		})
		return dir
	}
	t.Skip("no cgroup2 hierarchy")
	return ""
}

// use tells which of a few devices a process in the cgroup can use.
func use(t *testing.T, dir string) string {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	c := exec.Command("/bin/sh", "-c", `(: </dev/zero) && echo zero; (: <"$1/null") && echo read; (: >"$1/null") && echo write
		mknod "$1/disk" b 8 0 && echo mknod; dd if="$1/disk" of="$1/out" bs=1 count=1; case $? in 0) echo disk;; esac
		mknod "$1/mem" c 1 1 && (: <"$1/mem") && echo mem; true`, "sh", t.TempDir())
	null := filepath.Join(c.Args[len(c.Args)-1], "null")
	if err := unix.Mknod(null, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Skip("devices can't be made: ", err)
	}
	c.Stdin = strings.NewReader("") // not /dev/null
	var out strings.Builder
	c.Stdout = &out
	c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(out.String()), " ")
}

// The v2 filter is loaded into the kernel, also where the limits are v1's.
func TestDeviceFilter(t *testing.T) {
	dir := unifiedDir(t)
	number := func(n int64) *int64 { return &n }
	rules := []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"}, {Allow: true, Type: "b", Access: "m"},
		{Allow: true, Type: "c", Major: number(1), Minor: number(3), Access: "r"},
	}
	if err := devicesV2(dir, rules); err != nil {
		t.Fatal(err)
	}
	const want = "read mknod"
	if got := use(t, dir); got != want {
		t.Errorf("allowed: %q, want %q", got, want)
	}
	session := filepath.Join(dir, "exec-1")
	if err := os.Mkdir(session, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(session)
	if got := use(t, session); got != want {
		t.Errorf("allowed to a session: %q, want %q", got, want)
	}
	rules[3].Access = "rw"
	if err := devicesV2(dir, rules); err != nil {
		t.Fatal(err)
	}
	if got, want := use(t, session), "read write mknod"; got != want {
		t.Errorf("allowed after an update: %q, want %q", got, want)
	}
}
