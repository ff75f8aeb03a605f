package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
)

const many = 10

// times measures from the start of kubelet, with the image on the node: until the first pod's container runs, until that
// pod is Ready; and then from ten more manifests until all of their containers run. Running is when the runtime says that it
// started the container; Ready is what probes once a second make of it.
func (r *run) times() error {
	if err := r.WarmUp(r.ctx); err != nil {
		return err
	}
	for _, name := range []string{images.Web, images.Busybox} {
		image := &cri.ImageSpec{Image: "registry.k8s.io/" + name}
		if _, err := r.Image.PullImage(r.ctx, &cri.PullImageRequest{Image: image}); err != nil {
			return err
		}
	}
	if err := r.place("web"); err != nil {
		return err
	}
	if err := r.kubelet.start(r.ctx); err != nil {
		return err
	}
	began := r.kubelet.began
	if err := r.untilReady(); err != nil {
		return err
	}
	ready := time.Since(began)
	first, err := r.started("web-" + nodeName)
	if err != nil {
		return err
	}
	text, err := manifests.ReadFile("pods/plain.yaml")
	if err != nil {
		return err
	}
	placed := time.Now()
	for i := range many {
		file := filepath.Join(r.manifests, fmt.Sprintf("plain%d.yaml", i))
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(text), "$N", fmt.Sprint(i))), 0o644); err != nil {
			return err
		}
	}
	var last time.Time
	err = r.until(3*time.Minute, func() error {
		for i := range many {
			at, err := r.started(fmt.Sprintf("plain%d-%s", i, nodeName))
			if err != nil {
				return err
			}
			if at.After(last) {
				last = at
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	fmt.Printf("times: running %.2f ready %.2f ten %.2f\n", first.Sub(began).Seconds(), ready.Seconds(), last.Sub(placed).Seconds())
	return nil
}

// untilReady looks more often than until does.
func (r *run) untilReady() error {
	for deadline := time.Now().Add(2 * time.Minute); ; {
		r.kubelet.forget()
		err := r.ready("web")
		if err == nil || time.Now().After(deadline) || r.ctx.Err() != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond) // kubelet's API has nothing to wait on
	}
}

// started says when the runtime started a pod's only container.
func (r *run) started(pod string) (time.Time, error) {
	list, err := r.Runtime.ListContainers(r.ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
		State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}, LabelSelector: map[string]string{"io.kubernetes.pod.name": pod}}})
	if err != nil {
		return time.Time{}, err
	}
	if len(list.Containers) == 0 {
		return time.Time{}, errors.New("no container of " + pod + " runs")
	}
	s, err := r.Runtime.ContainerStatus(r.ctx, &cri.ContainerStatusRequest{ContainerId: list.Containers[0].Id})
	if err != nil {
		return time.Time{}, err
	}
	return time.Unix(0, s.Status.StartedAt), nil
}
