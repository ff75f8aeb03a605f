package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// TestSnapshotters runs a container on each snapshot driver besides the default one, through a restart of the server.
func TestSnapshotters(t *testing.T) {
	for _, name := range []string{"btrfs", "fuse-overlayfs", "copy"} {
		t.Run(name, func(t *testing.T) {
			o := testnode.Options{Config: "[image]\nsnapshotter = \"" + name + "\"\n"}
			switch name {
			case "btrfs":
				o.Dir = btrfsDir(t)
			case "fuse-overlayfs":
				if _, err := exec.LookPath(name); err != nil {
					t.Skip("fuse-overlayfs is not installed (Debian package fuse-overlayfs)")
				}
			}
			f := start(t, o)
			f.pull(images.Busybox)
			st, err := f.Runtime.Status(f.ctx, &cri.StatusRequest{Verbose: true})
			if err != nil || !strings.Contains(st.GetInfo()["images"], `"snapshotter":"`+name+`"`) {
				t.Errorf("status: %v %v", st.GetInfo()["images"], err)
			}
			pod := f.podConfig("snapshots")
			id := f.runPod(pod)
			c := f.runContainer(id, pod, containerConfig("c", images.Busybox, "sleep", "1000"))
			second := f.runContainer(id, pod, containerConfig("d", images.Busybox, "sleep", "1000"))
			if got := f.exec(c, "echo mine >/etc/passwd && dd if=/dev/zero of=/big bs=1M count=3 2>/dev/null && rm -r /bin/[ && cat /etc/passwd && stat -c %s /big"); got != "mine\n3145728\n" {
				t.Errorf("what was written: %q", got)
			}
			if got := f.exec(second, "ls /bin/[; test ! -e /big && grep -c root /etc/passwd"); got != "/bin/[\n1\n" {
				t.Errorf("the other container: %q", got)
			}
			f.restart("with containers on " + name)
			if got := f.exec(c, "cat /etc/passwd; test ! -e /bin/[ && echo gone"); got != "mine\ngone\n" {
				t.Errorf("after a restart: %q", got)
			}
			f.removePod(id)
		})
	}
}

// btrfsDir is a directory on a fresh btrfs.
func btrfsDir(t *testing.T) string {
	t.Helper()
	testns.Root(t)
	if _, err := exec.LookPath("mkfs.btrfs"); err != nil {
		t.Skip("mkfs.btrfs is not installed (Debian package btrfs-progs)")
	}
	img, dir := filepath.Join(t.TempDir(), "btrfs"), t.TempDir()
	for _, c := range [][]string{{"truncate", "-s", "500M", img}, {"mkfs.btrfs", "-q", img}, {"mount", "-o", "loop", img, dir}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", c, err, out)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}
