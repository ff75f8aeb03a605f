package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// imageID is the id of a pulled image, by which kubelet names it in mounts.
func (f *fixture) imageID(name string) string {
	f.t.Helper()
	r, err := f.Image.ImageStatus(f.ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: registry + name}})
	if err != nil || r.Image == nil {
		f.t.Fatalf("image %s: %v %v", name, r, err)
	}
	return r.Image.Id
}

// volumeLeftovers lists the snapshots and mounts of image volumes.
func (f *fixture) volumeLeftovers() []string {
	snapshots, _ := filepath.Glob(filepath.Join(f.Dir, "root", "images", "snapshots", "*.*"))
	mounts, _ := filepath.Glob(filepath.Join(f.State, "volumes", "*"))
	return append(snapshots, mounts...)
}

// Mount.image and Mount.image_sub_path.
func TestImageVolume(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox, images.DemoWeb)
	web := &cri.ImageSpec{Image: f.imageID(images.DemoWeb)}
	pod := f.podConfig("volume")
	id := f.runPod(pod)
	config := containerConfig("c", images.Busybox, "sleep", "1000")
	config.Mounts = []*cri.Mount{
		{ContainerPath: "/image", Image: web},
		{ContainerPath: "/site", Image: web, ImageSubPath: "var/www", MountOptions: []string{"noexec"}},
		{ContainerPath: "/page.html", Image: web, ImageSubPath: "var/www/index.html"},
	}
	c := f.runContainer(id, pod, config)
	if got := f.exec(c, "cat /image/var/www/index.html /site/index.html /page.html"); got != strings.Repeat("hello from a pod\n", 3) {
		t.Errorf("files of the image: %q", got)
	}
	if got := f.exec(c, "for d in /image /site; do touch $d/x 2>&1; done; mount -o remount,rw /image 2>&1; true"); strings.Count(got, "Read-only file system") != 2 {
		t.Errorf("writing to the image: %q", got)
	}
	if got := f.exec(c, "grep ' /site ' /proc/self/mountinfo"); !strings.Contains(got, "noexec") || strings.Contains(got, f.Dir) {
		t.Errorf("mount: %s", got)
	}
	s, err := f.Runtime.ContainerStatus(f.ctx, &cri.ContainerStatusRequest{ContainerId: c})
	if err != nil || len(s.Status.Mounts) != 3 || s.Status.Mounts[0].Image.GetImage() != web.Image || s.Status.Mounts[1].ImageSubPath != "var/www" {
		t.Errorf("mounts in the status: %v %v", s.GetStatus().GetMounts(), err)
	}

	// The image can be removed; what is mounted stays. So it does when the server is killed.
	if _, err := f.Image.RemoveImage(f.ctx, &cri.RemoveImageRequest{Image: web}); err != nil {
		t.Error(err)
	}
	if err := os.MkdirAll(filepath.Join(f.State, "volumes", "left", "0"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", filepath.Join(f.State, "volumes", "left", "0"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	f.restart("with an image volume")
	if got := f.exec(c, "find /image -type f -exec cat {} + | wc -c"); strings.TrimSpace(got) == "0" {
		t.Error("the image's files are gone")
	}
	if got := f.volumeLeftovers(); len(got) != 3 {
		t.Errorf("want three snapshots and no mounts: %q", got)
	}
	f.removePod(id)
	f.eventually("no snapshot left", func() bool { return len(f.volumeLeftovers()) == 0 })
}

func TestImageVolumeRefused(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	pod := f.podConfig("refused")
	id := f.runPod(pod)
	box := &cri.ImageSpec{Image: f.imageID(images.Busybox)}
	for name, m := range map[string]*cri.Mount{
		"image that was not pulled": {Image: &cri.ImageSpec{Image: "registry.k8s.io/no/such:1"}},
		"missing sub path":          {Image: box, ImageSubPath: "no/such"},
		"escaping sub path":         {Image: box, ImageSubPath: "../../etc"},
		"absolute sub path":         {Image: box, ImageSubPath: "/etc"},
		"sub path through a file":   {Image: box, ImageSubPath: "etc/passwd/x"},
		"host path too":             {Image: box, HostPath: "/etc"},
	} {
		m.ContainerPath = "/image"
		config := containerConfig("c", images.Busybox, "sleep", "1000")
		config.Mounts = []*cri.Mount{{ContainerPath: "/good", Image: box}, m}
		_, err := f.Runtime.CreateContainer(f.ctx, &cri.CreateContainerRequest{PodSandboxId: id, Config: config, SandboxConfig: pod})
		// kubelet looks for this at the beginning of the message.
		if err == nil || !strings.Contains(err.Error(), "desc = ImageVolumeMountFailed") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := f.volumeLeftovers(); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
	f.removePod(id)
}

func TestImageVolumeUserNamespace(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox, images.DemoWeb)
	ids := []*cri.IDMapping{{HostId: 131072, ContainerId: 0, Length: 65536}}
	pod := f.podConfig("mapped")
	ns := &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER,
		UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids}}
	pod.Linux.SecurityContext.NamespaceOptions = ns
	id := f.runPod(pod)
	config := containerConfig("c", images.Busybox, "sleep", "1000")
	config.Linux.SecurityContext.NamespaceOptions = ns
	config.Mounts = []*cri.Mount{{ContainerPath: "/image", Image: &cri.ImageSpec{Image: f.imageID(images.DemoWeb)}, UidMappings: ids, GidMappings: ids}}
	c := f.runContainer(id, pod, config)
	if got := f.exec(c, "stat -c %u:%g /image/var/www/index.html; cat /image/var/www/index.html"); got != "0:0\nhello from a pod\n" {
		t.Errorf("owner and content: %q", got)
	}
	f.removePod(id)
}
