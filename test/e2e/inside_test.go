package e2e

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// What a container can see of the machine is what it was given.
func TestContainerSees(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	pod := f.podConfig("inside")
	id := f.runPod(pod)
	c := f.runContainer(id, pod, containerConfig("c", images.Busybox, "sleep", "1000"))

	t.Run("fds", func(t *testing.T) {
		f.t = t
		if got := strings.Fields(f.exec(c, "ls /proc/1/fd")); !slices.Equal(got, []string{"0", "1", "2"}) {
			t.Errorf("fds of init: %q", got)
		}
		// ls itself has 3 open: the directory.
		if got := strings.Fields(f.exec(c, "ls /proc/self/fd")); !slices.Equal(got, []string{"0", "1", "2", "3"}) {
			t.Errorf("fds of an exec'd process: %q", got)
		}
	})
	t.Run("environment", func(t *testing.T) {
		f.t = t
		for _, e := range strings.Split(strings.TrimRight(f.exec(c, "tr '\\000' '\\n' </proc/1/environ"), "\n"), "\n") {
			if k, _, _ := strings.Cut(e, "="); !slices.Contains([]string{"PATH", "HOSTNAME", "HOME", "TERM"}, k) {
				t.Errorf("environment: %q", e)
			}
		}
	})
	t.Run("init's program", func(t *testing.T) {
		f.t = t
		if got := strings.TrimSpace(f.exec(c, "readlink /proc/1/exe")); !strings.HasPrefix(got, "/bin/") {
			t.Errorf("/proc/1/exe: %q", got)
		}
	})
	t.Run("mounts", func(t *testing.T) { f.t = t; f.mounts(c) })
	t.Run("limits of /dev", func(t *testing.T) {
		f.t = t
		got := strings.Fields(f.exec(c, "ls /dev"))
		for _, d := range got {
			if !slices.Contains(strings.Fields("console core fd full mqueue null ptmx pts random shm stderr stdin stdout termination-log tty urandom zero"), d) {
				t.Errorf("/dev/%s", d)
			}
		}
	})
	f.t = t
	f.removePod(id)
}

func (f *fixture) mounts(c string) {
	given := []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/shm", "/dev/termination-log"}
	for _, line := range strings.Split(strings.TrimSpace(f.exec(c, "cat /proc/self/mountinfo")), "\n") {
		w := strings.Fields(line)
		root, point := w[3], w[4]
		if strings.Contains(line, f.Dir) {
			f.t.Errorf("names a host path: %s", line)
		}
		if root != "/" && !slices.Contains(given, point) && !strings.HasPrefix(point, "/proc") && !strings.HasPrefix(point, "/sys") &&
			!strings.HasPrefix(point, "/dev") {
			f.t.Errorf("a bind mount that was not asked for: %s", line)
		}
	}
}

// In a pod with one pid namespace pid 1 is pause; it can't be a way to overwrite a program of the host.
func TestPauseIsSealed(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	pod := f.podConfig("shared-pid")
	pod.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_POD}
	id := f.runPod(pod)
	config := containerConfig("c", images.Busybox, "sleep", "1000")
	config.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_POD}
	config.Linux.SecurityContext.Privileged = false
	c := f.runContainer(id, pod, config)
	if got := f.exec(c, "cat /proc/1/comm; (echo x >/proc/1/exe) 2>/dev/null && echo written; ls /proc/1/fd 2>/dev/null | grep -v '^[012]$'; true"); strings.Contains(got, "written") || strings.Count(got, "\n") != 1 {
		t.Errorf("pid 1: %q", got)
	}
	f.removePod(id)
}

func TestImageKinds(t *testing.T) {
	f := start(t, testnode.Options{})
	pod := f.podConfig("kinds")
	id := f.runPod(pod)
	for _, image := range []string{images.Busybox, images.Zstd, images.Docker2, images.Index} {
		f.pull(image)
		name := strings.NewReplacer("/", "-", ":", "-", ".", "-").Replace(image)
		c := f.runContainer(id, pod, containerConfig(name, image, "sleep", "1000"))
		if got := f.exec(c, "stat -c '%a %u' /tmp /bin/busybox; id -u nobody"); got != "1777 0\n755 0\n65534\n" {
			t.Errorf("%s: %q", image, got)
		}
	}
	r, err := f.Image.PullImage(f.ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: registry + images.Private},
		Auth: &cri.AuthConfig{Username: images.User, Password: images.Password}})
	if err != nil {
		t.Fatalf("private image: %v", err)
	}
	s, err := f.Image.ImageStatus(f.ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: registry + images.Private}})
	if err != nil || s.Image == nil || s.Image.Id != r.ImageRef || s.Image.Size == 0 {
		t.Errorf("private image: %v %v", s, err)
	}
	logs, _ := filepath.Glob(f.Log())
	for _, l := range logs {
		if b := readFile(t, l); strings.Contains(b, images.Password) {
			t.Error("the password is in the log")
		}
	}
	f.removePod(id)
}
