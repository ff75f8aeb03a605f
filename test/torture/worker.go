package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
)

// A worker makes, uses and removes pods of its own as its numbers say, and repeats each call until it is acknowledged, as
// kubelet does.
type worker struct {
	t      *torture
	n      int
	random *rand.Rand
	pods   []*pod
	serial int
}

// What a worker has at most.
const (
	maxPods       = 3
	maxContainers = 3
)

// imagesOfWorkers are pulled and removed, one by each worker. None is the same image as another under a second name, since
// removing an image removes all its names.
var imagesOfWorkers = []string{images.Zstd, images.DemoWeb, images.DemoApp, "k8s-staging-cri-tools/test-image-1:latest",
	"k8s-staging-cri-tools/test-image-2:latest", "k8s-staging-cri-tools/test-image-3:latest"}

// stuckTime is how long a call may be repeated before it counts as stuck; after a sixth of it nothing more is killed. It is
// long because the machine may be busy with other things.
const stuckTime = 2 * time.Minute

func (w *worker) run(ctx context.Context) {
	for ctx.Err() == nil {
		w.t.steps.RLock()
		var err error
		if ctx.Err() == nil {
			err = w.step(ctx)
		}
		w.t.steps.RUnlock()
		if err != nil && ctx.Err() == nil {
			w.t.fail("worker %d: %v", w.n, err)
			return
		}
	}
}

// step takes one step; when it returns all that was begun is acknowledged.
func (w *worker) step(ctx context.Context) error {
	if len(w.pods) == 0 || len(w.pods) < maxPods && w.random.IntN(5) == 0 {
		return w.runPod(ctx)
	}
	p := w.pods[w.random.IntN(len(w.pods))]
	if p.state == ended {
		return w.removePod(ctx, p)
	}
	running := slices.DeleteFunc(slices.Clone(p.containers), func(c *container) bool { return c.state != alive || c.steps != 0 })
	n := w.random.IntN(100)
	switch {
	case n < 12 && len(p.containers) > 0:
		return w.removePod(ctx, p)
	case n < 17 && len(p.containers) > 0:
		return w.stopPod(ctx, p)
	case len(p.containers) == 0 || n < 40 && len(p.containers) < maxContainers:
		return w.create(ctx, p)
	case n < 50 && len(running) > 0:
		return w.exec(ctx, running[w.random.IntN(len(running))])
	case n < 54 && len(running) > 0:
		return w.session(ctx, running[w.random.IntN(len(running))])
	case n < 56 && len(running) > 0:
		return w.attach(ctx, running[w.random.IntN(len(running))])
	case n < 60 && len(running) > 0:
		return w.update(ctx, running[w.random.IntN(len(running))])
	case n < 67:
		return w.pullOrRemove(ctx)
	}
	return w.containerStep(ctx, p.containers[w.random.IntN(len(p.containers))])
}

func (w *worker) containerStep(ctx context.Context, c *container) error {
	n := w.random.IntN(10)
	switch {
	case c.state == created && n < 8:
		return w.start(ctx, c)
	case c.state == alive && n < 3:
		return w.rotate(ctx, c)
	case c.state == alive && n < 6:
		return w.stop(ctx, c)
	case c.state == alive && c.steps != 0:
		return w.awaitEnd(ctx, c)
	case c.state == alive && n < 8:
		return w.exec(ctx, c)
	}
	return w.remove(ctx, c)
}

// call repeats a call until it succeeds. Now and then it leaves early, as a client with a short deadline does, and
// comes again.
func (w *worker) call(ctx context.Context, what string, f func(context.Context) error) error {
	p := w.t.begin(what)
	defer w.t.end(p)
	for try := 0; ; try++ {
		patience := 20 * time.Second
		if w.random.IntN(12) == 0 {
			patience = time.Duration(1+w.random.IntN(60)) * time.Millisecond
		}
		one, cancel := context.WithTimeout(ctx, patience)
		err := f(one)
		cancel()
		if err == nil {
			w.t.trace("worker %d: %s: acknowledged after %d tries", w.n, what, try+1)
			return nil
		}
		if code := status.Code(err); code == codes.NotFound && ctx.Err() == nil {
			return fmt.Errorf("lost: %s: %w", what, err)
		}
		w.t.count(what, err)
		w.t.trace("worker %d: %s: %v", w.n, what, err)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Since(p.since) > stuckTime {
			return fmt.Errorf("stuck: %s for %v: %w", what, time.Since(p.since).Round(time.Millisecond), err)
		}
		pause := time.Duration(1+min(try, 20)) * 2 * time.Millisecond
		if status.Code(err) != codes.Unavailable {
			pause *= 2
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

func (w *worker) runPod(ctx context.Context) error {
	w.serial++
	p := &pod{name: fmt.Sprintf("w%d-%d", w.n, w.serial)}
	p.dir = filepath.Join(w.t.node.Dir, "tmp", p.name)
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return err
	}
	p.config = &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: p.name, Namespace: "torture", Uid: fmt.Sprintf("%d-%d", w.n, w.serial)},
		Hostname:     p.name,
		LogDirectory: p.dir,
		Labels:       map[string]string{"worker": fmt.Sprint(w.n)},
		Linux:        &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{}}},
	}
	ns := p.config.Linux.SecurityContext.NamespaceOptions
	ns.Pid = cri.NamespaceMode_CONTAINER
	p.handler = w.t.handlers[w.random.IntN(len(w.t.handlers))]
	switch w.random.IntN(7) {
	case 0:
		ns.Network = cri.NamespaceMode_NODE
		p.config.Hostname = ""
	case 1:
		ns.Pid = cri.NamespaceMode_POD
	case 2, 3:
		p.port = int32(20000 + w.n*1000 + w.serial%1000)
		p.config.PortMappings = []*cri.PortMapping{{Protocol: cri.Protocol_TCP, ContainerPort: 80, HostPort: p.port}}
	case 4:
		p.handler = "" // Debian's runc and crun want a root that was mapped before
		const length = 65536
		ids := []*cri.IDMapping{{ContainerId: 0, HostId: uint32(1+w.n*1000+w.serial%1000) * length, Length: length}}
		ns.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids}
		w.t.tally.users.Add(1)
	}
	if p.handler != "" {
		w.t.tally.oci.Add(1)
	}
	w.pods = append(w.pods, p)
	w.t.model.edit(func() { w.t.model.pods[p] = true; p.moves++ })
	err := w.call(ctx, "RunPodSandbox", func(ctx context.Context) error {
		r, err := w.t.node.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config, RuntimeHandler: p.handler})
		if err == nil {
			w.t.model.edit(func() { p.id, p.state = r.PodSandboxId, alive; p.moves++ })
		}
		return err
	})
	w.t.tally.pods.Add(1)
	return err
}

// settle notes that a call on the pod begins or was acknowledged, with what it changes.
func (w *worker) settle(p *pod, f func()) {
	w.t.model.edit(func() {
		p.moves++
		for _, c := range p.containers {
			c.moves++
		}
		if f != nil {
			f()
		}
	})
}

func (w *worker) stopPod(ctx context.Context, p *pod) error {
	w.settle(p, func() {
		for _, c := range p.containers {
			c.stopped, c.killed = true, true
		}
	})
	err := w.call(ctx, "StopPodSandbox", func(ctx context.Context) error {
		_, err := w.t.node.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id})
		return err
	})
	if err != nil {
		return err
	}
	w.settle(p, func() {
		p.state = ended
		for _, c := range p.containers {
			c.state = ended
		}
	})
	for _, c := range p.containers {
		if err := w.checkEnd(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// removePod removes a pod, often without stopping it first.
func (w *worker) removePod(ctx context.Context, p *pod) error {
	if p.state == alive && w.random.IntN(2) == 0 {
		if err := w.stopPod(ctx, p); err != nil {
			return err
		}
	}
	w.settle(p, func() {
		p.state = unwanted
		for _, c := range p.containers {
			c.state, c.stopped, c.killed = unwanted, true, true
		}
	})
	err := w.call(ctx, "RemovePodSandbox", func(ctx context.Context) error {
		_, err := w.t.node.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id})
		return err
	})
	if err != nil {
		return err
	}
	w.pods = slices.DeleteFunc(w.pods, func(q *pod) bool { return q == p })
	w.settle(p, func() { delete(w.t.model.pods, p) })
	for _, c := range p.containers {
		if err := w.checkLog(c); err != nil {
			return err
		}
	}
	return os.RemoveAll(p.dir)
}

// pullOrRemove pulls or removes an image that no container uses.
func (w *worker) pullOrRemove(ctx context.Context) error {
	name := imagesOfWorkers[w.n]
	image := &cri.ImageSpec{Image: registry + name}
	there := w.t.model.images[name]
	w.t.model.edit(func() { delete(w.t.model.images, name) }) // not known for now
	if there {
		err := w.call(ctx, "RemoveImage", func(ctx context.Context) error {
			_, err := w.t.node.Image.RemoveImage(ctx, &cri.RemoveImageRequest{Image: image})
			return err
		})
		w.t.model.edit(func() { w.t.model.images[name] = false })
		return err
	}
	err := w.call(ctx, "PullImage", func(ctx context.Context) error {
		_, err := w.t.node.Image.PullImage(ctx, &cri.PullImageRequest{Image: image})
		return err
	})
	w.t.tally.pulls.Add(1)
	w.t.model.edit(func() { w.t.model.images[name] = true })
	return err
}

// shortID is what a name of an object begins with in a message.
func shortID(id string) string { return id[:min(12, len(id))] }

// oneLine is the text without line breaks, for messages.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
