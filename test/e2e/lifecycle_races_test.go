package e2e

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// Whatever is done to a pod at the same time: no call fails but for saying what is so, and nothing is left.
func TestRacesInOnePod(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	var pods sync.WaitGroup
	for round := range 30 {
		pods.Go(func() { f.race(round) })
	}
	pods.Wait()
	if all := f.listing(); len(all) != 1 {
		t.Errorf("listed: %q", all)
	}
}

func (f *fixture) race(round int) {
	pod := f.podConfig(fmt.Sprintf("race%d", round))
	r, err := f.Runtime.RunPodSandbox(f.ctx, &cri.RunPodSandboxRequest{Config: pod})
	if err != nil {
		f.t.Errorf("run: %v", err)
		return
	}
	p, c := r.PodSandboxId, ""
	x, err := f.Runtime.CreateContainer(f.ctx, &cri.CreateContainerRequest{PodSandboxId: p, SandboxConfig: pod,
		Config: containerConfig("c", images.Busybox, "sleep", "1000")})
	if err == nil {
		c = x.ContainerId
		_, err = f.Runtime.StartContainer(f.ctx, &cri.StartContainerRequest{ContainerId: c})
	}
	if err != nil {
		f.t.Errorf("container: %v", err)
		return
	}
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			r, err := f.Runtime.CreateContainer(f.ctx, &cri.CreateContainerRequest{PodSandboxId: p, SandboxConfig: pod,
				Config: containerConfig(fmt.Sprintf("c%d", n), images.Busybox, "sleep", "1000")})
			f.only("create", err, codes.FailedPrecondition, codes.NotFound)
			if err == nil {
				_, err = f.Runtime.StartContainer(f.ctx, &cri.StartContainerRequest{ContainerId: r.ContainerId})
				if err != nil && !strings.Contains(err.Error(), "kill") && !strings.Contains(err.Error(), "no such process") {
					f.only("start", err, codes.FailedPrecondition, codes.NotFound)
				}
			}
		})
		wg.Go(func() {
			_, err := f.Runtime.StopContainer(f.ctx, &cri.StopContainerRequest{ContainerId: c, Timeout: int64(n * 10)})
			f.only("stop container", err)
		})
		wg.Go(func() {
			_, err := f.Runtime.ExecSync(f.ctx, &cri.ExecSyncRequest{ContainerId: c, Cmd: []string{"sleep", "5"}, Timeout: 20})
			f.only("exec", err, codes.FailedPrecondition, codes.NotFound)
		})
	}
	for range 2 {
		wg.Go(func() {
			_, err := f.Runtime.StopPodSandbox(f.ctx, &cri.StopPodSandboxRequest{PodSandboxId: p})
			f.only("stop pod", err)
		})
		wg.Go(func() {
			_, err := f.Runtime.RemovePodSandbox(f.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p})
			f.only("remove pod", err)
		})
	}
	wg.Wait()
}

// only reports an error that is not of the kinds that tell the truth about an object that goes away.
func (f *fixture) only(what string, err error, allowed ...codes.Code) {
	for _, code := range allowed {
		if status.Code(err) == code {
			return
		}
	}
	if err != nil {
		f.t.Errorf("%s: %v", what, err)
	}
}

// Every mode of namespaces goes its whole way.
func TestNamespaceModes(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	node := cri.NamespaceMode_NODE
	for name, o := range map[string]*cri.NamespaceOption{
		"host network":       {Network: node, Pid: cri.NamespaceMode_CONTAINER},
		"host ipc and pid":   {Ipc: node, Pid: node},
		"everything is host": {Network: node, Ipc: node, Pid: node},
		"shared pid":         {Pid: cri.NamespaceMode_POD},
		"user namespace": {Pid: cri.NamespaceMode_CONTAINER, UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_POD,
			Uids: []*cri.IDMapping{{HostId: 1 << 20, Length: 65536}}, Gids: []*cri.IDMapping{{HostId: 1 << 20, Length: 65536}}}},
		"user namespace, shared pid": {Pid: cri.NamespaceMode_POD, UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_POD,
			Uids: []*cri.IDMapping{{HostId: 1 << 20, Length: 65536}}, Gids: []*cri.IDMapping{{HostId: 1 << 20, Length: 65536}}}},
	} {
		t.Run(name, func(t *testing.T) {
			f.t = t
			pod := f.podConfig("modes")
			pod.Hostname = ""
			pod.Linux.SecurityContext.NamespaceOptions = o
			p := f.runPod(pod)
			var ids []string
			for n := range 3 {
				c := containerConfig(fmt.Sprintf("c%d", n), images.Busybox, "sleep", "1000")
				c.Linux.SecurityContext.NamespaceOptions = o
				ids = append(ids, f.runContainer(p, pod, c))
			}
			f.restart("with " + name)
			if o.Pid == cri.NamespaceMode_CONTAINER {
				debug := containerConfig("debug", images.Busybox, "sleep", "1000")
				debug.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Network: o.Network, Ipc: o.Ipc,
					Pid: cri.NamespaceMode_TARGET, TargetId: ids[0], UsernsOptions: o.UsernsOptions}
				d := f.runContainer(p, pod, debug)
				if a, b := f.exec(ids[0], "readlink /proc/self/ns/pid"), f.exec(d, "readlink /proc/self/ns/pid"); a != b {
					t.Errorf("pid namespace of the target %s, of the debug container %s", a, b)
				}
			}
			for _, id := range ids {
				if got := f.exec(id, "hostname; cat /etc/hostname"); strings.Count(got, strings.Fields(got)[0]) != 2 {
					t.Errorf("hostname and /etc/hostname: %q", got)
				}
				f.exec(id, "echo x >/dev/shm/x-$$ && rm /dev/shm/x-$$ && id -u | grep -qx 0")
			}
			f.removePod(p)
		})
	}
	f.t = t
}

// What a pod was made from may go away under it.
func TestGroundGivesWay(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	pod := f.podConfig("ground")
	p := f.runPod(pod)
	c := f.runContainer(p, pod, containerConfig("c", images.Busybox, "sleep", "1000"))
	if _, err := f.Image.RemoveImage(f.ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: busybox}}); err != nil {
		t.Errorf("remove an image in use: %v", err)
	}
	f.restart("without the image of a container")
	f.exec(c, "true")
	if s := f.containerStatus(c); s.Image.GetImage() == "" || s.ImageRef == "" {
		t.Errorf("status: %v", s)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := f.Runtime.ExecSync(f.ctx, &cri.ExecSyncRequest{ContainerId: c, Cmd: []string{"sh", "-c", "touch /on; sleep 1000"}})
		ended <- err
	}()
	f.eventually("the exec runs", func() bool { return f.exec(c, "ls /") != "" && strings.Contains(f.exec(c, "ls /"), "on\n") })
	if _, err := f.Runtime.RemoveContainer(f.ctx, &cri.RemoveContainerRequest{ContainerId: c}); err != nil {
		t.Errorf("remove with an exec: %v", err)
	}
	<-ended
	f.pull(images.Busybox)
	if err := os.RemoveAll(pod.LogDirectory); err != nil {
		t.Fatal(err)
	}
	d := f.runContainer(p, pod, containerConfig("d", images.Busybox, "sh", "-c", "echo hello; sleep 1000"))
	f.eventually("a log", func() bool {
		b, _ := os.ReadFile(f.containerStatus(d).LogPath)
		return strings.Contains(string(b), "hello")
	})
	if err := unix.Unmount("/run/netns/cri-"+p, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove("/run/netns/cri-" + p); err != nil {
		t.Fatal(err)
	}
	f.removePod(p)
}
