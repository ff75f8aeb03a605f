package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/admin"
	"github.com/seed-9a14075a/cri-server/test/images"
)

// life is the life of a pod as kubelet leads it: each step is a call that can be repeated until it succeeds.
type life struct {
	f        *fixture
	name     string
	image    string
	config   *cri.PodSandboxConfig
	archive  string // of the image, once somebody has exported it
	attempt  uint32 // of the container: raised when a start has failed, as kubelet does
	pod, ctr string // ids, once they were acknowledged
	// acked is what the server has acknowledged: the state in which each pod and container must be listed, as long as no
	// call that changes it is under way.
	acked map[string]string
}

// move is one call.
type move struct {
	name string
	call func() error
}

func (f *fixture) newLife(name string) *life {
	l := &life{f: f, name: name, image: registry + images.Web, config: f.podConfig(name), acked: map[string]string{}}
	l.config.PortMappings = []*cri.PortMapping{{Protocol: cri.Protocol_TCP, ContainerPort: 80, HostPort: 11998}}
	return l
}

// steps are all calls that change something, in the order of a pod's life.
func (l *life) steps() []move {
	return []move{
		{"pull", l.pull}, {"run", l.run}, {"create", l.create}, {"start", l.start}, {"exec", l.exec}, {"update", l.update},
		{"reopen", l.reopen}, {"stop container", l.stopContainer}, {"remove container", l.removeContainer},
		{"create again", l.create}, {"start again", l.start}, {"stop pod", l.stopPod}, {"remove pod", l.removePod},
		{"remove image", l.removeImage}, {"import", l.importPacked}, {"remove imported", l.removeImage},
	}
}

func (l *life) pull() error {
	_, err := l.f.Image.PullImage(l.f.ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: l.image}})
	return err
}

// importPacked brings the image in from its archive, and leaves it to the first container to unpack it.
func (l *life) importPacked() error {
	f, err := os.Open(l.archive)
	if err != nil {
		return err
	}
	defer f.Close()
	a := admin.NewClient(filepath.Join(l.f.State, "admin.sock"))
	defer a.Close()
	_, err = a.Import(l.f.ctx, f, true)
	return err
}

// export makes the archive of an image that is there.
func (l *life) export() error {
	l.archive = filepath.Join(l.f.Dir, "tmp", "image.tar")
	f, err := os.Create(l.archive)
	if err != nil {
		return err
	}
	defer f.Close()
	a := admin.NewClient(filepath.Join(l.f.State, "admin.sock"))
	defer a.Close()
	return a.Export(l.f.ctx, f, l.image)
}

func (l *life) run() error {
	r, err := l.f.Runtime.RunPodSandbox(l.f.ctx, &cri.RunPodSandboxRequest{Config: l.config})
	if err != nil {
		return err
	}
	l.f.ids = append(l.f.ids, r.PodSandboxId)
	l.pod, l.acked[r.PodSandboxId] = r.PodSandboxId, "SANDBOX_READY"
	return nil
}

// containerConfig: the program ends with 42 when it is told to.
func (l *life) containerConfig() *cri.ContainerConfig {
	c := containerConfig("c", images.Web, "sh", "-c", endsWith42)
	c.Metadata.Attempt = l.attempt
	return c
}

const endsWith42 = `trap "exit 42" USR1; trap "exit 0" TERM; while :; do sleep 1000 & wait; done`

func (l *life) create() error {
	r, err := l.f.Runtime.CreateContainer(l.f.ctx, &cri.CreateContainerRequest{PodSandboxId: l.pod, SandboxConfig: l.config, Config: l.containerConfig()})
	if err != nil {
		return err
	}
	l.f.ids = append(l.f.ids, r.ContainerId)
	l.ctr, l.acked[r.ContainerId] = r.ContainerId, "CONTAINER_CREATED"
	return nil
}

// start makes another container when the first can't be started any more.
func (l *life) start() error {
	l.acked[l.ctr] = "" // created or running
	_, err := l.f.Runtime.StartContainer(l.f.ctx, &cri.StartContainerRequest{ContainerId: l.ctr})
	if err == nil {
		l.acked[l.ctr] = "CONTAINER_RUNNING"
		return nil
	}
	st, serr := l.f.Runtime.ContainerStatus(l.f.ctx, &cri.ContainerStatusRequest{ContainerId: l.ctr})
	if serr == nil && st.Status.State == cri.ContainerState_CONTAINER_EXITED {
		if rerr := l.removeContainer(); rerr != nil {
			return rerr
		}
		l.attempt++
		if cerr := l.create(); cerr != nil {
			return cerr
		}
	}
	return err
}

func (l *life) exec() error {
	r, err := l.f.Runtime.ExecSync(l.f.ctx, &cri.ExecSyncRequest{ContainerId: l.ctr, Cmd: []string{"sh", "-c", "echo here"}, Timeout: 20})
	if err == nil && (r.ExitCode != 0 || string(r.Stdout) != "here\n") {
		err = fmt.Errorf("exec: %v", r)
	}
	return err
}

func (l *life) update() error {
	_, err := l.f.Runtime.UpdateContainerResources(l.f.ctx, &cri.UpdateContainerResourcesRequest{ContainerId: l.ctr,
		Linux: &cri.LinuxContainerResources{CpuShares: 512, OomScoreAdj: 500}})
	return err
}

func (l *life) reopen() error {
	_, err := l.f.Runtime.ReopenContainerLog(l.f.ctx, &cri.ReopenContainerLogRequest{ContainerId: l.ctr})
	return err
}

func (l *life) stopContainer() error {
	l.acked[l.ctr] = "" // running or ended
	_, err := l.f.Runtime.StopContainer(l.f.ctx, &cri.StopContainerRequest{ContainerId: l.ctr, Timeout: 10})
	if err == nil {
		l.acked[l.ctr] = "CONTAINER_EXITED"
	}
	return err
}

func (l *life) removeContainer() error {
	delete(l.acked, l.ctr)
	_, err := l.f.Runtime.RemoveContainer(l.f.ctx, &cri.RemoveContainerRequest{ContainerId: l.ctr})
	if err == nil {
		l.attempt++
	}
	return err
}

func (l *life) stopPod() error {
	l.acked[l.pod], l.acked[l.ctr] = "", ""
	_, err := l.f.Runtime.StopPodSandbox(l.f.ctx, &cri.StopPodSandboxRequest{PodSandboxId: l.pod})
	if err == nil {
		l.acked[l.pod], l.acked[l.ctr] = "SANDBOX_NOTREADY", "CONTAINER_EXITED"
	}
	return err
}

func (l *life) removePod() error {
	delete(l.acked, l.pod)
	delete(l.acked, l.ctr)
	_, err := l.f.Runtime.RemovePodSandbox(l.f.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: l.pod})
	return err
}

func (l *life) removeImage() error {
	_, err := l.f.Image.RemoveImage(l.f.ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: l.image}})
	return err
}

// lost compares what was acknowledged with what is listed now.
func (l *life) lost() (wrong []string) {
	listed := map[string]string{}
	pods, err := l.f.Runtime.ListPodSandbox(l.f.ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return []string{err.Error()}
	}
	for _, p := range pods.Items {
		listed[p.Id] = p.State.String()
	}
	containers, err := l.f.Runtime.ListContainers(l.f.ctx, &cri.ListContainersRequest{})
	if err != nil {
		return []string{err.Error()}
	}
	for _, c := range containers.Containers {
		listed[c.Id] = c.State.String()
	}
	for id, state := range l.acked {
		if got := listed[id]; got == "" || state != "" && got != state {
			wrong = append(wrong, fmt.Sprintf("%.12s is listed as %q, acknowledged as %q", id, got, state))
		}
	}
	return wrong
}

// again repeats a call until it succeeds, as kubelet does; its error is that of the last try.
func (f *fixture) again(s move) (tries int, err error) {
	for tries = 1; tries <= 5; tries++ {
		if err = s.call(); err == nil {
			return tries, nil
		}
		if status.Code(err) == codes.Unavailable { // the socket of the new server
			tries--
			if f.ctx.Err() != nil {
				break
			}
		}
	}
	return tries, fmt.Errorf("%s: %w", s.name, err)
}

// stored lists the files of the image store by name and size, without its tables.
func (f *fixture) stored() []string {
	var all []string
	root := filepath.Join(f.Dir, "root", "images")
	for _, dir := range []string{"blobs", "layers", "ingest", "trash", "snapshots"} {
		_ = filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || strings.Count(strings.TrimPrefix(path, root), "/") > 4 {
				return err
			}
			size := int64(0)
			if i, ierr := d.Info(); ierr == nil && d.Type().IsRegular() {
				size = i.Size()
			}
			all = append(all, fmt.Sprintf("%s %d", strings.TrimPrefix(path, root), size))
			return nil
		})
	}
	return all
}
