package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/torture/stream"
)

// registry is the name of the test images' registry.
const registry = "registry.k8s.io/"

// grace is how long a container has to end on its stop signal; one that writes reacts within some ms.
const grace = 10

func (w *worker) create(ctx context.Context, p *pod) error {
	p.serial++
	c := &container{pod: p, name: fmt.Sprintf("c%d", p.serial), seed: w.random.Uint64() >> 1, code: int32(1 + w.random.IntN(90))}
	if w.random.IntN(3) == 0 {
		c.steps = int64(1 + w.random.IntN(400))
	}
	if w.random.IntN(4) == 0 {
		c.code = 0
	}
	if err := stream.CreateCounter(c.counter()); err != nil {
		return err
	}
	pause := 2000 + w.random.IntN(40000)
	if w.random.IntN(8) == 0 {
		pause = 300
	}
	c.config = &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: c.name}, Image: &cri.ImageSpec{Image: registry + images.Busybox}, LogPath: c.name + ".log",
		Command: []string{"/writer", fmt.Sprint(c.seed), fmt.Sprint(c.steps), fmt.Sprint(pause), fmt.Sprint(c.code), "/counter"},
		Mounts: []*cri.Mount{{HostPath: w.t.writer, ContainerPath: "/writer", Readonly: true},
			{HostPath: c.counter(), ContainerPath: "/counter"}},
		Linux: &cri.LinuxContainerConfig{Resources: &cri.LinuxContainerResources{CpuShares: 2},
			SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions}},
	}
	w.t.model.edit(func() { p.containers = append(p.containers, c); c.moves++ })
	err := w.call(ctx, "CreateContainer", func(ctx context.Context) error {
		r, err := w.t.node.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, Config: c.config, SandboxConfig: p.config})
		if err == nil {
			w.t.model.edit(func() { c.id, c.state = r.ContainerId, created; c.moves++ })
		}
		return err
	})
	w.t.tally.containers.Add(1)
	if err != nil || w.random.IntN(6) == 0 {
		return err
	}
	return w.start(ctx, c)
}

func (c *container) counter() string { return filepath.Join(c.pod.dir, c.name+".count") }

func (w *worker) change(c *container, f func()) {
	w.t.model.edit(func() {
		c.moves++
		if f != nil {
			f()
		}
	})
}

func (w *worker) start(ctx context.Context, c *container) error {
	w.change(c, nil)
	refused, why, deaths := false, "", w.t.tally.monitors.Load()
	err := w.call(ctx, "StartContainer", func(ctx context.Context) error {
		_, err := w.t.node.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.id})
		if status.Code(err) == codes.FailedPrecondition { // an earlier try was carried out, or refused
			r, serr := w.t.node.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.id})
			if serr == nil && r.Status.State == cri.ContainerState_CONTAINER_EXITED {
				refused, why = r.Status.StartedAt == 0, r.Status.Reason+" "+r.Status.Message
				w.t.trace("worker %d: %s: status after a start: %s %d %s", w.n, shortID(c.id), r.Status.Reason, r.Status.ExitCode, oneLine(r.Status.Message))
				return nil
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	if refused {
		w.t.tally.refused.Add(1)
		// Whether the program of a container has begun is not known when cri-monitor dies while it lets it begin.
		cut := strings.Contains(why, "cut short by the death")
		if cut {
			err = w.await(ctx, "cri-monitor was killed", func() bool { return w.t.tally.monitors.Load() > deaths })
		}
		if (!cut || err != nil) && !w.t.o.errors {
			return fmt.Errorf("container %s: its start was refused: %s", shortID(c.id), why)
		}
	}
	w.change(c, func() {
		if c.state = alive; refused {
			c.state, c.failed = ended, true
		}
	})
	return nil
}

func (w *worker) stop(ctx context.Context, c *container) error {
	seconds := int64(grace)
	if w.random.IntN(3) == 0 {
		seconds = 0
	}
	if seconds > 0 && c.state == alive { // before that its program, being pid 1, is deaf to SIGTERM
		if err := w.await(ctx, "the program begins", func() bool { return c.phase() != stream.NotBegun }); err != nil {
			return fmt.Errorf("container %s: %w", shortID(c.id), err)
		}
	}
	w.change(c, func() { c.stopped = true; c.killed = c.killed || seconds == 0 })
	err := w.call(ctx, "StopContainer", func(ctx context.Context) error {
		_, err := w.t.node.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.id, Timeout: seconds})
		return err
	})
	if err != nil {
		return err
	}
	w.change(c, func() { c.state = ended })
	return w.checkEnd(ctx, c)
}

// await polls until ok.
func (w *worker) await(ctx context.Context, what string, ok func() bool) error {
	for began := time.Now(); !ok(); {
		if time.Since(began) > stuckTime {
			return fmt.Errorf("not within %v: %s", stuckTime, what)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// phase is where the program says that it is.
func (c *container) phase() int64 {
	count, err := stream.OpenCounter(c.counter(), false)
	if err != nil {
		return stream.NotBegun
	}
	defer count.Close()
	return count.Phase.Load()
}

// awaitEnd waits for the end of a container that ends by itself.
func (w *worker) awaitEnd(ctx context.Context, c *container) error {
	err := w.call(ctx, "ContainerStatus", func(ctx context.Context) error {
		for {
			r, err := w.t.node.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.id})
			if err != nil || r.Status.State == cri.ContainerState_CONTAINER_EXITED {
				return err
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("container %s has not ended: %w", shortID(c.id), ctx.Err())
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
	if err != nil {
		return err
	}
	w.change(c, nil)
	w.change(c, func() { c.state = ended })
	return w.checkEnd(ctx, c)
}

func (w *worker) remove(ctx context.Context, c *container) error {
	w.change(c, func() { c.state, c.stopped, c.killed = unwanted, true, true })
	err := w.call(ctx, "RemoveContainer", func(ctx context.Context) error {
		_, err := w.t.node.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: c.id})
		return err
	})
	if err != nil {
		return err
	}
	w.change(c, func() {
		c.pod.containers = slices.DeleteFunc(c.pod.containers, func(d *container) bool { return d == c })
	})
	return w.checkLog(c)
}

func (w *worker) exec(ctx context.Context, c *container) error {
	token, code := fmt.Sprint(w.random.Uint64()), int32(w.random.IntN(120))
	err := w.call(ctx, "ExecSync", func(ctx context.Context) error {
		r, err := w.t.node.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.id, Timeout: 15,
			Cmd: []string{"sh", "-c", fmt.Sprintf("echo %s; echo %s >&2; exit %d", token, token, code)}})
		if err != nil {
			return err
		}
		if string(r.Stdout) != token+"\n" || string(r.Stderr) != token+"\n" || r.ExitCode != code {
			w.t.fail("exec in %s: %q %q %d instead of %s %d", shortID(c.id), r.Stdout, r.Stderr, r.ExitCode, token, code)
		}
		return nil
	})
	w.t.tally.execs.Add(1)
	return err
}

func (w *worker) update(ctx context.Context, c *container) error {
	shares := int64(2 + w.random.IntN(1000))
	return w.call(ctx, "UpdateContainerResources", func(ctx context.Context) error {
		_, err := w.t.node.Runtime.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: c.id,
			Linux: &cri.LinuxContainerResources{CpuShares: shares}})
		return err
	})
}

// rotate moves the log away as kubelet does.
func (w *worker) rotate(ctx context.Context, c *container) error {
	log := filepath.Join(c.pod.dir, c.config.LogPath)
	err := os.Rename(log, fmt.Sprintf("%s.%d", log, c.rotated))
	if os.IsNotExist(err) && c.steps != 0 {
		return nil // it had ended when its log was rotated last
	}
	if err != nil {
		return fmt.Errorf("container %s, which runs: %w", shortID(c.id), err)
	}
	c.rotated++
	w.t.tally.rotations.Add(1)
	return w.call(ctx, "ReopenContainerLog", func(ctx context.Context) error {
		_, err := w.t.node.Runtime.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: c.id})
		if c.steps != 0 && (status.Code(err) == codes.FailedPrecondition || status.Code(err) == codes.NotFound) {
			return nil // it has ended by itself
		}
		return err
	})
}

// checkEnd checks what a container that has ended says of itself, and its log.
func (w *worker) checkEnd(ctx context.Context, c *container) error {
	var st *cri.ContainerStatus
	err := w.call(ctx, "ContainerStatus", func(ctx context.Context) error {
		r, err := w.t.node.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.id})
		st = r.GetStatus()
		return err
	})
	if err != nil {
		return err
	}
	if err := c.endsAs(st, c.phase()); err != nil {
		return err
	}
	w.t.tally.codes.Add(1)
	return w.checkLog(c)
}

// endsAs compares a status with what is known of the container's end.
func (c *container) endsAs(st *cri.ContainerStatus, phase int64) error {
	told := fmt.Sprintf("container %s (steps %d, code %d, stopped %v, killed %v, phase %d) is %v with %d %s %q", shortID(c.id), c.steps, c.code,
		c.stopped, c.killed, phase, st.State, st.ExitCode, st.Reason, st.Message)
	switch {
	case st.State != cri.ContainerState_CONTAINER_EXITED:
		return fmt.Errorf("%s", told)
	case c.failed, st.StartedAt == 0 && c.stopped:
		return nil
	case st.FinishedAt < st.StartedAt || st.StartedAt < st.CreatedAt:
		return fmt.Errorf("%s: created %d, started %d, finished %d", told, st.CreatedAt, st.StartedAt, st.FinishedAt)
	case phase == stream.Ending && st.ExitCode == c.code:
	case c.killed && st.ExitCode == 137:
	default:
		return fmt.Errorf("%s", told)
	}
	return nil
}
