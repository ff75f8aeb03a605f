package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// TestHangingImages: what takes images and layers in, below the root directory, answers no more. A pull and a create end with
// their deadlines and tell their stages; everything else goes on.
func TestHangingImages(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	pod := f.podConfig("pod")
	id := f.runPod(pod)
	c := f.runContainer(id, pod, containerConfig("c", images.Busybox, "sleep", "1000"))
	dir := filepath.Join(f.Dir, "root", "images", "ingest")
	fs := newHangFS(t, dir)
	reuse := filepath.Join(f.Dir, "root", "images", "reuse") // where a writable layer begins
	layers := newHangFS(t, reuse)
	fs.hang()
	layers.hang()
	pull := func(ctx context.Context) error {
		short, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, err := f.Image.PullImage(short, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: registry + images.Web}})
		return err
	}
	err := f.bounded("pull", pull)
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), `: still at stage "`) || fs.waiting() == 0 {
		t.Errorf("an image was pulled to where nothing answers: %v, %d requests wait", err, fs.waiting())
	}
	waiting := fs.waiting()
	err = f.bounded("pull again", pull) // waits for the first
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), `the former try has not ended: still at stage "`) {
		t.Errorf("pull again: %v", err)
	}
	if now := fs.waiting(); now > waiting {
		t.Errorf("the second pull waits for the disk itself: %d requests, then %d", waiting, now)
	}
	for what, call := range map[string]func(context.Context) error{
		"list images": func(ctx context.Context) error {
			_, err := f.Image.ListImages(ctx, &cri.ListImagesRequest{})
			return err
		},
		"image status": func(ctx context.Context) error {
			_, err := f.Image.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: registry + images.Busybox}})
			return err
		},
		"image file system": func(ctx context.Context) error {
			_, err := f.Image.ImageFsInfo(ctx, &cri.ImageFsInfoRequest{})
			return err
		},
	} {
		if err := f.bounded(what, call); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	f.answers()
	f.removePod(f.runPod(f.podConfig("other"))) // but no container can be made: its layer begins there
	err = f.bounded("create", func(ctx context.Context) error {
		short, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, err := f.Runtime.CreateContainer(short, &cri.CreateContainerRequest{PodSandboxId: id, SandboxConfig: pod,
			Config: containerConfig("late", images.Busybox, "true")})
		return err
	})
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), `stage "snapshot`) {
		t.Errorf("create: %v", err)
	}
	if out := f.exec(c, "echo there"); out != "there\n" {
		t.Errorf("exec: %q", out)
	}
	err = f.bounded("stop pod", func(ctx context.Context) error { // half a minute, as for a kill
		_, err := f.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
		return err
	})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "a file system that it needs") {
		t.Errorf("stop pod: %v", err)
	}
	fs.abort()
	layers.abort()
	for _, dir := range []string{dir, reuse} {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}
	f.removePod(id)
	f.eventually("the image is pulled", func() bool { return pull(f.ctx) == nil })
}

// TestHangingRecords: the directory of the pods' records answers no more. Lists, and what needs no record, go on; what does
// ends with its caller's deadline, and can be repeated afterwards.
func TestHangingRecords(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	if err := f.KillServer(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(f.Dir, "root", "sandboxes")
	fs := newHangFS(t, dir)
	if err := f.StartServer(f.ctx); err != nil {
		t.Fatal(err)
	}
	pod := f.podConfig("pod")
	id := f.runPod(pod)
	c := f.runContainer(id, pod, containerConfig("c", images.Busybox, "sleep", "1000"))
	fs.hang()
	late := f.podConfig("late")
	err := f.bounded("another pod", func(ctx context.Context) error {
		short, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, err := f.Runtime.RunPodSandbox(short, &cri.RunPodSandboxRequest{Config: late})
		return err
	})
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), `stage "`) || fs.waiting() == 0 {
		t.Errorf("a pod was run without a record: %v, %d requests wait", err, fs.waiting())
	}
	f.answers()
	if out := f.exec(c, "echo there"); out != "there\n" {
		t.Errorf("exec: %q", out)
	}
	if err := f.bounded("stop container", func(ctx context.Context) error {
		_, err := f.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c})
		return err
	}); err != nil {
		t.Error(err)
	}
	err = f.bounded("resize pod", func(ctx context.Context) error {
		short, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, err := f.Runtime.UpdatePodSandboxResources(short, &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: id, Resources: &cri.LinuxContainerResources{CpuShares: 3}})
		return err
	})
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), `still at stage "record"`) {
		t.Errorf("resize pod: %v", err)
	}
	err = f.bounded("stop pod", func(ctx context.Context) error {
		short, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, err := f.Runtime.StopPodSandbox(short, &cri.StopPodSandboxRequest{PodSandboxId: id})
		return err
	})
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), `still at stage "record the stop"`) {
		t.Errorf("stop pod: %v", err)
	}
	f.answers()
	fs.abort()
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Error(err)
	}
	f.eventually("the pod has gone", func() bool {
		_, err := f.Runtime.StopPodSandbox(f.ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
		_, err2 := f.Runtime.RemovePodSandbox(f.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
		return err == nil && err2 == nil
	})
	f.eventually("the other pod is run", func() bool {
		r, err := f.Runtime.RunPodSandbox(f.ctx, &cri.RunPodSandboxRequest{Config: late})
		if err == nil {
			f.removePod(r.PodSandboxId)
		}
		return err == nil
	})
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
}
