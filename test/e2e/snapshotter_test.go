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

// TestMountPointsAreShared: what the runtime mounts leaves nothing in a container's writable layer, read-only root or not; one with a
// user namespace of its own has mount points of its own.
func TestMountPointsAreShared(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	mapping := []*cri.IDMapping{{HostId: 200000, Length: 65536}}
	userns := &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER,
		UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: mapping, Gids: mapping}}
	token := t.TempDir()
	for name, c := range map[string]struct {
		ns       *cri.NamespaceOption
		readOnly bool
		shared   bool
	}{"plain": {ownPid, false, true}, "readonly": {ownPid, true, true}, "userns": {userns, false, false}} {
		pod := f.podConfig(name)
		pod.Linux.SecurityContext.NamespaceOptions = c.ns
		id := f.runPod(pod)
		config := containerConfig("c", images.Busybox, "sleep", "1000")
		config.Linux.SecurityContext.NamespaceOptions, config.Linux.SecurityContext.ReadonlyRootfs = c.ns, c.readOnly
		if c.shared {
			config.Mounts = []*cri.Mount{{HostPath: token, ContainerPath: "/var/run/secrets/kubernetes.io/serviceaccount", Readonly: true}}
		}
		ctr := f.runContainer(id, pod, config)
		if got := f.exec(ctr, "cat /etc/hostname && test -s /etc/hosts && stat -c '%a %u %g' /etc"); got != name+"\n755 0 0\n" {
			t.Errorf("%s: %q", name, got)
		}
		if c.shared {
			f.exec(ctr, "test -d /var/run/secrets/kubernetes.io/serviceaccount")
		}
		written, err := filepath.Glob(filepath.Join(f.Dir, "root/images/snapshots", ctr, "fs/*"))
		if err != nil || (len(written) == 0) != c.shared {
			t.Errorf("%s: in the writable layer: %v %v", name, written, err)
		}
		f.removePod(id)
	}
	if sets, err := filepath.Glob(filepath.Join(f.Dir, "root/images/targets/*")); err != nil || len(sets) != 1 {
		t.Errorf("sets of mount points: %v %v, want one", sets, err)
	}
}
