// Command demo shows a pod's life on cri-server, from the pull of its images to the last trace of it, with the time each
// step took. It runs on a test node of its own and needs root; the machine is afterwards as it was before.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

func main() {
	if err := testnode.Isolate(func(compared int) {
		fmt.Printf("\nThe machine is as before: %d mounts, interfaces, namespaces, cgroups, netfilter rules and directories compared,\nand no process is left.\n", compared)
	}); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// demo is the story's state.
type demo struct {
	*testnode.Node
	ctx      context.Context
	config   *cri.PodSandboxConfig
	pod, ip  string
	web, app string
	before   testnode.Snapshot
	stepNo   int
}

func run() (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	fmt.Println("A node of its own: new mount and network namespaces, a registry on their loopback, and cri-server. Nothing else\n" +
		"is installed or running: no containerd, no runc, no CNI plugin, no pause image.")
	began := time.Now()
	n, err := testnode.Start(ctx, testnode.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Stop()) }()
	d := &demo{Node: n, ctx: ctx}
	v, err := n.Runtime.Version(ctx, &cri.VersionRequest{})
	if err != nil {
		return err
	}
	d.took(began, "%s %s serves the CRI (%s) on %s", v.RuntimeName, v.RuntimeVersion, v.RuntimeApiVersion, n.Socket)
	if err := n.WarmUp(ctx); err != nil {
		return err
	}
	d.before = testnode.Take()
	for _, s := range []struct {
		title string
		run   func(*demo) error
	}{
		{"Pull two images, by names that a mirror maps to the local registry", (*demo).pull},
		{"Start a pod with two containers", (*demo).start},
		{"Read the logs", (*demo).logs},
		{"Run a command in a container", (*demo).exec},
		{"Forward a port of the pod, and reach its host port", (*demo).forward},
		{"Look inside: cri-server inspect", (*demo).inspect},
		{"Kill cri-server with SIGKILL; start it again", (*demo).crash},
		{"Stop and remove the pod and the images", (*demo).remove},
	} {
		d.stepNo++
		fmt.Printf("\n%d. %s\n", d.stepNo, s.title)
		if err := s.run(d); err != nil {
			return fmt.Errorf("%s: %w\nthe end of the server's log:\n%s", strings.ToLower(s.title), err, n.LogTail())
		}
	}
	return nil
}

// took prints what was done with the time since began.
func (d *demo) took(began time.Time, format string, args ...any) {
	fmt.Printf("   %8.1f ms  %s\n", float64(time.Since(began).Microseconds())/1000, fmt.Sprintf(format, args...))
}

// quote prints a program's output.
func quote(text string) {
	for _, l := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		fmt.Println("      │ " + l)
	}
}

const registry = "registry.k8s.io/"

func (d *demo) pull() error {
	for _, image := range []string{images.DemoWeb, images.DemoApp} {
		began := time.Now()
		r, err := d.Image.PullImage(d.ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: registry + image}})
		if err != nil {
			return err
		}
		s, err := d.Image.ImageStatus(d.ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: r.ImageRef}})
		if err != nil {
			return err
		}
		d.took(began, "PullImage %s: %.1f MB, %s", registry+image, float64(s.Image.GetSize())/1e6, short(r.ImageRef))
	}
	return nil
}

func short(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(12, len(id))]
}

func (d *demo) start() error {
	d.config = &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "hello", Namespace: "demo", Uid: "0b6b7f3e-demo"},
		Hostname:     "hello",
		LogDirectory: filepath.Join(d.Dir, "tmp", "logs"),
		DnsConfig:    &cri.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"demo.svc.cluster.local"}},
		PortMappings: []*cri.PortMapping{{Protocol: cri.Protocol_TCP, ContainerPort: 8080, HostPort: 12080}},
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: ownPid, Seccomp: runtimeDefault}},
	}
	began := time.Now()
	r, err := d.Runtime.RunPodSandbox(d.ctx, &cri.RunPodSandboxRequest{Config: d.config})
	if err != nil {
		return err
	}
	d.pod = r.PodSandboxId
	s, err := d.Runtime.PodSandboxStatus(d.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: d.pod})
	if err != nil {
		return err
	}
	d.ip = s.Status.Network.GetIp()
	d.took(began, "RunPodSandbox demo/hello: pod %s, address %s", short(d.pod), d.ip)
	if d.web, err = d.container("web", images.DemoWeb); err != nil {
		return err
	}
	d.app, err = d.container("app", images.DemoApp)
	d.took(began, "all of it")
	return err
}

var (
	ownPid         = &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}
	runtimeDefault = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
)

func (d *demo) container(name, image string) (string, error) {
	began := time.Now()
	c, err := d.Runtime.CreateContainer(d.ctx, &cri.CreateContainerRequest{PodSandboxId: d.pod, SandboxConfig: d.config, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: registry + image}, LogPath: name + ".log",
		Linux: &cri.LinuxContainerConfig{
			Resources:       &cri.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 102, MemoryLimitInBytes: 64 << 20},
			SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: ownPid, Seccomp: runtimeDefault, NoNewPrivs: true},
		}}})
	if err != nil {
		return "", err
	}
	d.took(began, "CreateContainer %s: %s", name, short(c.ContainerId))
	began = time.Now()
	if _, err := d.Runtime.StartContainer(d.ctx, &cri.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		return "", err
	}
	d.took(began, "StartContainer %s", name)
	return c.ContainerId, nil
}

func (d *demo) logs() error {
	for _, name := range []string{"web", "app"} {
		path := filepath.Join(d.config.LogDirectory, name+".log")
		text, err := d.await(path, func(s string) bool { return strings.Count(s, "\n") >= map[string]int{"web": 1, "app": 3}[name] })
		if err != nil {
			return err
		}
		fmt.Println("   " + name + ".log")
		quote(text)
	}
	return nil
}

// await reads a file until it is as wanted.
func (d *demo) await(path string, ok func(string) bool) (string, error) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(path)
		if err == nil && ok(string(b)) {
			return string(b), nil
		}
		if time.Now().After(deadline) || d.ctx.Err() != nil {
			return "", errors.Join(fmt.Errorf("%s isn't as expected: %q", path, b), err)
		}
	}
}

func (d *demo) exec() error {
	const command = "echo $GREETING; id; cat /proc/self/status | grep -E 'CapEff|NoNewPrivs|Seccomp:'; ls /proc/self/fd | wc -l; ps"
	began := time.Now()
	r, err := d.Runtime.ExecSync(d.ctx, &cri.ExecSyncRequest{ContainerId: d.app, Cmd: []string{"sh", "-c", command}, Timeout: 10})
	if err != nil {
		return err
	}
	d.took(began, "ExecSync in app: %s", command)
	quote(string(r.Stdout) + string(r.Stderr))
	return nil
}

func (d *demo) inspect() error {
	c := exec.CommandContext(d.ctx, filepath.Join(d.Repo, "bin", "cri-server"), "inspect", "--socket", d.Socket, "--state", d.State, d.pod)
	out, err := c.CombinedOutput()
	quote(string(out))
	return err
}

func (d *demo) crash() error {
	log := filepath.Join(d.config.LogDirectory, "app.log")
	before, err := d.Runtime.ExecSync(d.ctx, &cri.ExecSyncRequest{ContainerId: d.app, Cmd: []string{"cut", "-d ", "-f22", "/proc/1/stat"}})
	if err != nil {
		return err
	}
	if err := d.KillServer(); err != nil {
		return err
	}
	began := time.Now()
	seen, _ := os.ReadFile(log)
	grown, err := d.await(log, func(s string) bool { return len(s) > len(seen) })
	if err != nil {
		return err
	}
	d.took(began, "without cri-server the containers run on, and their log grows")
	quote(strings.TrimPrefix(grown, string(seen)))
	began = time.Now()
	if err := d.StartServer(d.ctx); err != nil {
		return err
	}
	d.took(began, "cri-server is ready again")
	after, err := d.Runtime.ExecSync(d.ctx, &cri.ExecSyncRequest{ContainerId: d.app, Cmd: []string{"cut", "-d ", "-f22", "/proc/1/stat"}})
	if err != nil {
		return err
	}
	if string(before.Stdout) != string(after.Stdout) {
		return fmt.Errorf("the container was started anew: %s, %s", before.Stdout, after.Stdout)
	}
	d.took(began, "and runs a command in the same container, in the same process as before")
	return nil
}

func (d *demo) remove() error {
	for _, c := range []struct{ name, id string }{{"web", d.web}, {"app", d.app}} {
		began := time.Now()
		if _, err := d.Runtime.StopContainer(d.ctx, &cri.StopContainerRequest{ContainerId: c.id, Timeout: 10}); err != nil {
			return err
		}
		s, err := d.Runtime.ContainerStatus(d.ctx, &cri.ContainerStatusRequest{ContainerId: c.id})
		if err != nil {
			return err
		}
		d.took(began, "StopContainer %s: exit code %d, %s", c.name, s.Status.ExitCode, s.Status.Reason)
	}
	began := time.Now()
	if _, err := d.Runtime.StopPodSandbox(d.ctx, &cri.StopPodSandboxRequest{PodSandboxId: d.pod}); err != nil {
		return err
	}
	if _, err := d.Runtime.RemovePodSandbox(d.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: d.pod}); err != nil {
		return err
	}
	d.took(began, "StopPodSandbox and RemovePodSandbox")
	for _, image := range []string{images.DemoWeb, images.DemoApp} {
		if _, err := d.Image.RemoveImage(d.ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: registry + image}}); err != nil {
			return err
		}
	}
	if left := d.Leaks(d.before, []string{d.pod, d.web, d.app}); len(left) > 0 {
		return fmt.Errorf("left on the node:\n\t%s", testnode.Lines(left))
	}
	fmt.Println("   Nothing of the pod is left: no namespace, mount, interface, rule, cgroup or file.")
	return nil
}
