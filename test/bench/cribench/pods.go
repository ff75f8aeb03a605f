package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Names of rows that are sums of calls.
const (
	podStart = "pod start"
	podEnd   = "pod end"
	podLife  = "pod life"
)

const callTimeout = 2 * time.Minute

// limits say what a pod's containers get.
type limits struct {
	cpu   bool     // a tenth of a CPU
	cmd   []string // nil: waits, and ends at SIGTERM
	image string   // "": busybox
	log   string   // name of the log
}

// pod is one pod with one container.
type pod struct {
	id, container string
	config        *cri.PodSandboxConfig
}

// meter takes down how long calls took; it may be nil.
type meter func(call string, took time.Duration)

func (m meter) do(call string, f func() error) error {
	begin := time.Now()
	err := f()
	if m != nil && err == nil {
		m(call, time.Since(begin))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", call, err)
	}
	return nil
}

func defaultSeccomp() *cri.SecurityProfile {
	return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
}

func (d *daemon) podConfig(number int) *cri.PodSandboxConfig {
	name := podName(number)
	return &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Uid: fmt.Sprintf("%s-%d", name, time.Now().UnixNano()), Namespace: "bench"},
		Hostname: "bench", LogDirectory: filepath.Join(d.dir, "logs", name),
		DnsConfig: &cri.DNSConfig{Servers: []string{"10.96.0.10"}},
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: d.group.pod(name), SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}, Seccomp: defaultSeccomp()}}}
}

func containerConfig(name string, l limits) *cri.ContainerConfig {
	if l.cmd == nil {
		l.cmd = []string{"sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"}
	}
	l.image = cmp.Or(l.image, image)
	if l.log == "" {
		l.log = name + ".log"
	}
	r := &cri.LinuxContainerResources{CpuShares: 102, MemoryLimitInBytes: 512 << 20}
	if l.cpu {
		r.CpuPeriod, r.CpuQuota = 100_000, 10_000
	}
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: l.image, UserSpecifiedImage: l.image},
		Command: l.cmd, LogPath: l.log,
		Linux: &cri.LinuxContainerConfig{Resources: r, SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}, Seccomp: defaultSeccomp()}}}
}

// sandbox runs a pod without containers.
func (d *daemon) sandbox(ctx context.Context, number int, m meter) (*pod, error) {
	p := &pod{config: d.podConfig(number)}
	return p, m.do("RunPodSandbox", func() error {
		r, err := d.rt.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config, RuntimeHandler: d.handler})
		p.id = r.GetPodSandboxId()
		return err
	})
}

// add creates and starts a container in p.
func (d *daemon) add(ctx context.Context, p *pod, name string, l limits, m meter) (string, error) {
	var id string
	err := m.do("CreateContainer", func() error {
		r, err := d.rt.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, Config: containerConfig(name, l), SandboxConfig: p.config})
		id = r.GetContainerId()
		return err
	})
	if err != nil {
		return "", err
	}
	return id, m.do("StartContainer", func() error {
		_, err := d.rt.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
		return err
	})
}

// begin starts a pod with its container.
func (d *daemon) begin(ctx context.Context, number int, l limits, m meter) (*pod, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var p *pod
	return p, m.do(podStart, func() (err error) {
		if p, err = d.sandbox(ctx, number, m); err != nil {
			return err
		}
		p.container, err = d.add(ctx, p, "c", l, m)
		return err
	})
}

// end stops and removes a pod as kubelet does: first the container.
func (d *daemon) end(ctx context.Context, p *pod, m meter) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	defer d.group.removePod(p.config.Metadata.Name)
	return m.do(podEnd, func() error {
		for _, call := range []struct {
			name string
			f    func() error
		}{
			{"StopContainer", func() error {
				_, err := d.rt.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: p.container, Timeout: 10})
				return err
			}},
			{"RemoveContainer", func() error {
				_, err := d.rt.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: p.container})
				return err
			}},
			{"StopPodSandbox", func() error {
				_, err := d.rt.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id})
				return err
			}},
			{"RemovePodSandbox", func() error {
				_, err := d.rt.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id})
				return err
			}},
		} {
			if err := m.do(call.name, call.f); err != nil {
				return err
			}
		}
		return nil
	})
}

// next is the number of a new pod, whose cgroup it makes, as kubelet does before it asks for the pod.
func (d *daemon) next() int { return d.nextFew(1) }

// nextFew is next for n pods with consecutive numbers, of which it returns the first.
func (d *daemon) nextFew(n int) int {
	first := d.pods + 1
	for d.pods += n; n > 0; n-- {
		if err := d.group.addPod(podName(first + n - 1)); err != nil {
			fmt.Fprintln(os.Stderr, "cribench:", err)
		}
	}
	return first
}

func podName(number int) string { return fmt.Sprintf("pod-%d", number) }

// each calls f for 0 to n-1, by so many workers, and returns the first error.
func each(n, workers int, f func(i int) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, workers)
	for w := range workers {
		wg.Go(func() {
			for errs[w] == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				errs[w] = f(i)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// clean stops and removes all pods there are.
func (d *daemon) clean(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Minute)
	defer cancel()
	l, err := d.rt.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("%s: clean: %w", d.name, err)
	}
	err = each(len(l.Items), 8, func(i int) error {
		id := l.Items[i].Id
		// Killed first: CRI-O waits 30 s for what ignores SIGTERM.
		c, err := d.rt.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: id}})
		if err != nil {
			return err
		}
		for _, c := range c.Containers {
			if _, err := d.rt.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.Id, Timeout: 1}); err != nil {
				return err
			}
		}
		if _, err := d.rt.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
			return err
		}
		_, err = d.rt.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: clean: %w", d.name, err)
	}
	logs := filepath.Join(d.dir, "logs")
	return errors.Join(d.group.flush(), os.RemoveAll(logs), os.Mkdir(logs, 0o755))
}

// warm pulls the images and takes a few pods through their life, so that what is made once and kept is there.
func (d *daemon) warm(ctx context.Context) error {
	for _, name := range []string{image, pauseImage} {
		spec := &cri.ImageSpec{Image: name}
		s, err := d.img.ImageStatus(ctx, &cri.ImageStatusRequest{Image: spec})
		if err != nil {
			return err
		}
		if s.GetImage() == nil {
			if _, err := d.img.PullImage(ctx, &cri.PullImageRequest{Image: spec}); err != nil {
				return fmt.Errorf("pull %s: %w", name, err)
			}
		}
	}
	for range 2 {
		p, err := d.begin(ctx, d.next(), limits{}, nil)
		if err != nil {
			return err
		}
		if err := d.exec(ctx, p.container); err != nil {
			return err
		}
		if err := d.end(ctx, p, nil); err != nil {
			return err
		}
	}
	return nil
}

func (d *daemon) exec(ctx context.Context, id string) error {
	r, err := d.rt.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 60})
	if err == nil && r.ExitCode != 0 {
		err = fmt.Errorf("exit code %d", r.ExitCode)
	}
	return err
}
