package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/torture/stream"
)

// settleTime is how long what a call has begun may go on behind its answer, before a check finds it wrong: the kernel takes
// network namespaces down one after the other, for all of a busy machine.
const settleTime = time.Minute

// checkLists compares what is listed with what the model is sure of, while the workers go on.
func (t *torture) checkLists(ctx context.Context) error {
	v := t.model.view()
	l, err := t.lists(ctx)
	if err != nil {
		return t.unlessOver(ctx, fmt.Errorf("list: %w", err))
	}
	var wrong []string
	for id, p := range v.pods {
		if said := l.pods[id]; !p.agrees(said) && t.model.same(p) {
			wrong = append(wrong, fmt.Sprintf("pod %s (%s) is listed as %v, the model has %d", shortID(id), p.name, said, p.state))
		}
	}
	for id, c := range v.containers {
		if said := l.containers[id]; !c.agrees(said) && t.model.sameContainer(c) {
			wrong = append(wrong, fmt.Sprintf("container %s (%s, steps %d) is listed as %v, the model has %d", shortID(id), c.name, c.steps, said, c.state))
		}
	}
	t.tally.lists.Add(1)
	if len(wrong) > 0 {
		return fmt.Errorf("after a start: %s", strings.Join(wrong, "; "))
	}
	return nil
}

// listed is what cri-server lists, by id.
type listed struct {
	pods       map[string]*cri.PodSandbox
	containers map[string]*cri.Container
	images     map[string]bool // by name
}

func (t *torture) lists(ctx context.Context) (*listed, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	pods, err := t.node.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	containers, err := t.node.Runtime.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	images, err := t.node.Image.ListImages(ctx, &cri.ListImagesRequest{})
	if err != nil {
		return nil, err
	}
	l := &listed{map[string]*cri.PodSandbox{}, map[string]*cri.Container{}, map[string]bool{}}
	for _, p := range pods.Items {
		l.pods[p.Id] = p
	}
	for _, c := range containers.Containers {
		l.containers[c.Id] = c
	}
	for _, i := range images.Images {
		for _, name := range i.RepoTags {
			l.images[name] = true
		}
	}
	return l, nil
}

func (p seenPod) agrees(said *cri.PodSandbox) bool {
	switch p.state {
	case alive:
		return said != nil && said.State == cri.PodSandboxState_SANDBOX_READY
	case ended:
		return said != nil && said.State == cri.PodSandboxState_SANDBOX_NOTREADY
	}
	return true // not sure
}

func (c seenContainer) agrees(said *cri.Container) bool {
	switch c.state {
	case created:
		return said != nil && said.State == cri.ContainerState_CONTAINER_CREATED
	case alive:
		return said != nil && (said.State == cri.ContainerState_CONTAINER_RUNNING || c.steps != 0 && said.State == cri.ContainerState_CONTAINER_EXITED)
	case ended:
		return said != nil && said.State == cri.ContainerState_CONTAINER_EXITED
	}
	return true
}

// checkAll has the workers rest, and compares everything.
func (t *torture) checkAll(ctx context.Context) error {
	t.steps.Lock()
	defer t.steps.Unlock()
	if ctx.Err() != nil {
		return nil
	}
	t.trace("check: all")
	var wrong []string
	for began := time.Now(); time.Since(began) < settleTime; sleep(ctx, 50*time.Millisecond) {
		var err error
		if wrong, err = t.look(ctx); err != nil {
			return err
		}
		if len(wrong) == 0 || ctx.Err() != nil {
			t.tally.checks.Add(1)
			return nil
		}
	}
	if len(wrong) > 40 {
		wrong = append(wrong[:40], fmt.Sprintf("and %d more", len(wrong)-40))
	}
	return errors.New("full check:\n\t" + strings.Join(wrong, "\n\t"))
}

// truth is what must be there, in the kernel and on disk, for the pods of the model.
type truth struct {
	pods, ready      map[string]*pod
	containers, live map[string]*container
	listed           *listed
}

// look compares once. The workers rest, so that nothing is under way.
func (t *torture) look(ctx context.Context) ([]string, error) {
	l, err := t.lists(ctx)
	if err != nil {
		return nil, t.unlessOver(ctx, fmt.Errorf("list: %w", err))
	}
	s := &truth{map[string]*pod{}, map[string]*pod{}, map[string]*container{}, map[string]*container{}, l}
	var wrong []string
	for p := range t.model.pods {
		s.pods[p.id] = p
		if p.state == alive {
			s.ready[p.id] = p
		}
		if said := l.pods[p.id]; !(seenPod{pod: p, state: p.state}).agrees(said) {
			wrong = append(wrong, fmt.Sprintf("pod %s (%s) is listed as %v, the model has %d", shortID(p.id), p.name, said, p.state))
		}
		for _, c := range p.containers {
			s.containers[c.id] = c
			said := l.containers[c.id]
			if !(seenContainer{container: c, state: c.state}).agrees(said) {
				wrong = append(wrong, fmt.Sprintf("container %s is listed as %v, the model has %d", shortID(c.id), said, c.state))
			}
			if said != nil && said.State != cri.ContainerState_CONTAINER_EXITED {
				s.live[c.id] = c
			}
		}
	}
	wrong = append(wrong, t.strangers(s)...)
	wrong = append(wrong, t.statuses(ctx, s)...)
	for _, f := range []func(*truth) []string{t.records, t.cgroups, t.processes, t.networks, t.mounts, t.strays, t.progress} {
		wrong = append(wrong, f(s)...)
	}
	slices.Sort(wrong)
	return wrong, nil
}

// strangers are what is listed though the model has never heard of it, and images that differ.
func (t *torture) strangers(s *truth) (wrong []string) {
	for id, p := range s.listed.pods {
		if s.pods[id] == nil {
			wrong = append(wrong, fmt.Sprintf("pod %s is listed and nobody has it: %v", shortID(id), p.Metadata))
		}
	}
	for id, c := range s.listed.containers {
		if s.containers[id] == nil {
			wrong = append(wrong, fmt.Sprintf("container %s is listed and nobody has it: %v", shortID(id), c.Metadata))
		}
	}
	for name, there := range t.model.images {
		if s.listed.images[registry+name] != there {
			wrong = append(wrong, fmt.Sprintf("image %s is listed: %v, though its pull or removal was acknowledged", name, !there))
		}
	}
	return wrong
}

// statuses compares each status with what is known.
func (t *torture) statuses(ctx context.Context, s *truth) (wrong []string) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for id, p := range s.ready {
		r, err := t.node.Runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("status of pod %s: %v", shortID(id), err))
			continue
		}
		if p.ip = r.Status.GetNetwork().GetIp(); (p.ip == "") != p.hostNetwork() {
			wrong = append(wrong, fmt.Sprintf("pod %s has the address %q", shortID(id), p.ip))
		}
	}
	for id, c := range s.containers {
		r, err := t.node.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("status of container %s: %v", shortID(id), err))
			continue
		}
		if r.Status.State == cri.ContainerState_CONTAINER_EXITED {
			if err := c.endsAs(r.Status, c.phase()); err != nil {
				wrong = append(wrong, err.Error())
			}
		}
	}
	return wrong
}

func (p *pod) hostNetwork() bool {
	return p.config.Linux.SecurityContext.NamespaceOptions.Network == cri.NamespaceMode_NODE
}

// progress sees to it that no writer is stuck: what it has written grows from one look to the next.
func (t *torture) progress(s *truth) (wrong []string) {
	for id, c := range s.live {
		if c.state != alive || c.steps != 0 {
			continue
		}
		count, err := stream.OpenCounter(c.counter(), false)
		if err != nil {
			wrong = append(wrong, err.Error())
			continue
		}
		began, begun := time.Now(), count.Lines[0].Load()+count.Lines[1].Load()
		for count.Lines[0].Load()+count.Lines[1].Load() == begun && time.Since(began) < settleTime {
			time.Sleep(time.Millisecond) // shared memory has no event
		}
		if count.Lines[0].Load()+count.Lines[1].Load() == begun {
			wrong = append(wrong, fmt.Sprintf("container %s writes no more, after %d lines; errno %d", shortID(id), begun, count.Errno.Load()))
		}
		count.Close()
	}
	return wrong
}
