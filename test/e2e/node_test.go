package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

const registry = "registry.k8s.io/"

// foreign is a command that runs another runtime instead of cri-server, to try the tests themselves; what only cri-server
// promises is not checked then.
var foreign = os.Getenv("CRI_SERVER_E2E_COMMAND")

func TestMain(m *testing.M) {
	if os.Getenv("CRI_SERVER_E2E") == "" {
		fmt.Println("the end-to-end tests run by `make test` (CRI_SERVER_E2E=1)")
		return
	}
	testns.Main(m)
}

// fixture is a node for one test.
type fixture struct {
	*testnode.Node
	t      *testing.T
	ctx    context.Context
	before testnode.Snapshot
	ids    []string // of every pod and container ever made
}

// start brings up a node with the busybox image, and takes it down with a leak check when the test ends.
func start(t *testing.T, o testnode.Options) *fixture {
	t.Helper()
	testns.Root(t)
	if err := testnode.Prepare(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), testns.Patience(5*time.Minute))
	t.Cleanup(cancel)
	o.Cgroup = testnode.CgroupParent(testns.CgroupParent(), "")
	o.Command = foreign
	n, err := testnode.Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{Node: n, t: t, ctx: ctx}
	t.Cleanup(f.end)
	if err := n.WarmUp(ctx); err != nil {
		t.Fatal(err)
	}
	f.before = testnode.Take()
	return f
}

func (f *fixture) end() {
	ctx, cancel := context.WithTimeout(context.Background(), testns.Patience(time.Minute))
	defer cancel()
	if f.ServerEnded(ctx) {
		f.t.Errorf("the server has crashed; the end of its log:\n%s", f.LogTail())
		if err := f.StartServer(ctx); err != nil {
			f.t.Error(err)
		}
	}
	if _, err := f.RemovePods(ctx); err != nil {
		f.t.Errorf("remove what is left: %v", err)
	}
	if f.before != nil && foreign == "" {
		if left := f.Leaks(f.before, f.ids); len(left) > 0 {
			f.t.Errorf("%d things left on the node:\n\t%s", len(left), strings.Join(left[:min(len(left), 25)], "\n\t"))
		}
	}
	if f.t.Failed() {
		f.t.Logf("end of the server's log:\n%s", f.LogTail())
	}
	if err := f.Stop(); err != nil {
		f.t.Error(err)
	}
}

// crictl runs crictl and returns what it prints; a failure ends the test.
func (f *fixture) crictl(args ...string) string {
	f.t.Helper()
	out, err := f.tryCrictl(args...)
	if err != nil {
		f.t.Fatal(err)
	}
	return out
}

func (f *fixture) tryCrictl(args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	c := f.Crictl(f.ctx, args...)
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		return stdout.String(), fmt.Errorf("crictl %s: %w\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// file writes a CRI message where crictl can read it.
func (f *fixture) file(name string, m any) string {
	f.t.Helper()
	b, err := json.Marshal(m)
	if err != nil {
		f.t.Fatal(err)
	}
	path := filepath.Join(f.Dir, "tmp", name)
	if err := os.WriteFile(path, b, 0o644); err != nil {
		f.t.Fatal(err)
	}
	return path
}

func (f *fixture) podConfig(name string) *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "e2e", Uid: "uid-" + name},
		Hostname:     name,
		LogDirectory: filepath.Join(f.Dir, "tmp", "log-"+name),
		DnsConfig:    &cri.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"e2e.test"}},
		Labels:       map[string]string{"app": name},
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: testnode.CgroupParent(testns.CgroupParent(), name),
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: ownPid}},
	}
}

func containerConfig(name, image string, command ...string) *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name},
		Image:    &cri.ImageSpec{Image: registry + image},
		Command:  command,
		LogPath:  name + ".log",
		Linux:    &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: ownPid}},
	}
}

// ownPid is what kubelet sends for a pod that says nothing about namespaces.
var ownPid = &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}

// pull fetches images by their test names.
func (f *fixture) pull(names ...string) {
	f.t.Helper()
	for _, name := range names {
		if _, err := f.Image.PullImage(f.ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: registry + name}}); err != nil {
			f.t.Fatalf("pull %s: %v", name, err)
		}
	}
}

func (f *fixture) runPod(c *cri.PodSandboxConfig) string {
	f.t.Helper()
	r, err := f.Runtime.RunPodSandbox(f.ctx, &cri.RunPodSandboxRequest{Config: c})
	if err != nil {
		f.t.Fatalf("run pod: %v", err)
	}
	f.ids = append(f.ids, r.PodSandboxId)
	return r.PodSandboxId
}

// runContainer creates and starts a container of the busybox image, or of the one c names.
func (f *fixture) runContainer(pod string, p *cri.PodSandboxConfig, c *cri.ContainerConfig) string {
	f.t.Helper()
	r, err := f.Runtime.CreateContainer(f.ctx, &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: p})
	if err != nil {
		f.t.Fatalf("create container: %v", err)
	}
	f.ids = append(f.ids, r.ContainerId)
	if _, err := f.Runtime.StartContainer(f.ctx, &cri.StartContainerRequest{ContainerId: r.ContainerId}); err != nil {
		f.t.Fatalf("start container: %v", err)
	}
	return r.ContainerId
}

// removePod stops and removes a pod; its cgroup parent, which belongs to the caller as it does to kubelet, goes too.
func (f *fixture) removePod(id string) {
	f.t.Helper()
	if _, err := f.Runtime.StopPodSandbox(f.ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		f.t.Errorf("stop pod: %v", err)
	}
	if _, err := f.Runtime.RemovePodSandbox(f.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		f.t.Errorf("remove pod: %v", err)
	}
}

// exec runs a shell command in a container and returns its stdout; exit status and errors end the test.
func (f *fixture) exec(id, script string) string {
	f.t.Helper()
	r, err := f.Runtime.ExecSync(f.ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Timeout: 20})
	if err != nil {
		f.t.Fatalf("exec %q: %v", script, err)
	}
	if r.ExitCode != 0 {
		f.t.Fatalf("exec %q: exit status %d\n%.300s\n%.300s", script, r.ExitCode, r.Stdout, r.Stderr)
	}
	return string(r.Stdout)
}

// eventually polls until ok, for up to 15 s (see testns.Patience).
func (f *fixture) eventually(what string, ok func() bool) {
	f.t.Helper()
	for deadline := time.Now().Add(testns.Patience(15 * time.Second)); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			f.t.Fatalf("not in time: %s", what)
		}
	}
}

// listing is what must be the same before and after a restart: pods, containers and images with their states.
func (f *fixture) listing() []string {
	f.t.Helper()
	var all []string
	pods, err := f.Runtime.ListPodSandbox(f.ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		f.t.Fatalf("list pods: %v", err)
	}
	for _, p := range pods.Items {
		all = append(all, fmt.Sprintf("pod %s %s %v %v", p.Id, p.Metadata, p.State, p.Labels))
	}
	containers, err := f.Runtime.ListContainers(f.ctx, &cri.ListContainersRequest{})
	if err != nil {
		f.t.Fatalf("list containers: %v", err)
	}
	for _, c := range containers.Containers {
		all = append(all, fmt.Sprintf("container %s %s of %s: %s %v %s %v", c.Id, c.Metadata, c.PodSandboxId, c.Image, c.State, c.ImageRef, c.CreatedAt))
	}
	imgs, err := f.Image.ListImages(f.ctx, &cri.ListImagesRequest{})
	if err != nil {
		f.t.Fatalf("list images: %v", err)
	}
	for _, i := range imgs.Images {
		all = append(all, fmt.Sprintf("image %s %v %v %d", i.Id, i.RepoTags, i.RepoDigests, i.Size))
	}
	slices.Sort(all)
	return all
}

// restart kills the server with SIGKILL, starts it again and checks that it lists what it listed.
func (f *fixture) restart(when string) {
	f.t.Helper()
	before := f.listing()
	if err := f.KillServer(); err != nil {
		f.t.Fatal(err)
	}
	if err := f.StartServer(f.ctx); err != nil {
		f.t.Fatalf("restart %s: %v", when, err)
	}
	if after := f.listing(); !slices.Equal(before, after) {
		f.t.Errorf("restart %s: listed before:\n\t%s\nand after:\n\t%s", when, strings.Join(before, "\n\t"), strings.Join(after, "\n\t"))
	}
}

var busybox = registry + images.Busybox
