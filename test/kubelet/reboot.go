package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// found is what was on the node before it went down, by the runtime's ids.
type found struct {
	Sandboxes, Containers map[string]string // names
	Codes                 map[string]int32  // of containers that had ended, by their ids
	Restarts              map[string]int    // pod/container
	Images                []string
}

func (r *run) foundFile() string { return filepath.Join(r.Dir, "before-reboot.json") }

// beforeReboot brings pods up, writes down what there is, and waits to be killed with the node.
func (r *run) beforeReboot() error {
	if err := r.warm(r.ctx); err != nil {
		return err
	}
	if err := r.place(append([]string{"messages", "late"}, everlasting...)...); err != nil {
		return err
	}
	if err := r.kubelet.start(r.ctx); err != nil {
		return err
	}
	if err := errors.Join(podsRun(r), messages(r)); err != nil {
		return err
	}
	if _, err := r.running("late", "late"); err != nil {
		return err
	}
	f, err := r.look()
	if err != nil {
		return err
	}
	if f.Restarts, err = r.restarts(); err != nil {
		return err
	}
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if err := os.WriteFile(r.foundFile()+".new", b, 0o644); err != nil {
		return err
	}
	if err := os.Rename(r.foundFile()+".new", r.foundFile()); err != nil {
		return err
	}
	fmt.Printf("%d sandboxes, %d containers; now the power may go\n", len(f.Sandboxes), len(f.Containers))
	<-r.ctx.Done()
	return errors.New("interrupted, and not by the end of the node")
}

// look lists what the runtime has.
func (r *run) look() (found, error) {
	f := found{Sandboxes: map[string]string{}, Containers: map[string]string{}, Codes: map[string]int32{}}
	pods, err1 := r.Runtime.ListPodSandbox(r.ctx, &cri.ListPodSandboxRequest{})
	containers, err2 := r.Runtime.ListContainers(r.ctx, &cri.ListContainersRequest{})
	images, err3 := r.Image.ListImages(r.ctx, &cri.ListImagesRequest{})
	for _, p := range pods.GetItems() {
		f.Sandboxes[p.Id] = p.Metadata.Name
	}
	for _, c := range containers.GetContainers() {
		f.Containers[c.Id] = c.Labels["io.kubernetes.pod.name"] + "/" + c.Metadata.Name
		if c.State != cri.ContainerState_CONTAINER_EXITED {
			continue
		}
		s, err := r.Runtime.ContainerStatus(r.ctx, &cri.ContainerStatusRequest{ContainerId: c.Id})
		if err != nil {
			return f, err
		}
		f.Codes[c.Id] = s.Status.ExitCode
	}
	for _, i := range images.GetImages() {
		f.Images = append(f.Images, i.Id)
	}
	return f, errors.Join(err1, err2, err3)
}

// restarts are the restart counts of the pods that come back.
func (r *run) restarts() (map[string]int, error) {
	counts := map[string]int{}
	for _, name := range everlasting {
		p, err := r.pod(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, c := range p.Status.ContainerStatuses {
			counts[name+"/"+c.Name] = c.RestartCount
		}
	}
	return counts, nil
}

// afterReboot is the first start of cri-server and of kubelet after it.
func (r *run) afterReboot() error {
	b, err := os.ReadFile(r.foundFile())
	if err != nil {
		return err
	}
	var f found
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	r.each([]promise{
		{"after a reboot: sandboxes are NOTREADY, containers EXITED, with all they had", func(r *run) error { return r.ended(f) }},
		{"after a reboot: images are kept", func(r *run) error { return r.imagesKept(f) }},
		{"after a reboot: an old sandbox is stopped and removed", func(r *run) error { return r.removeOld(f) }},
	})
	if err := r.warm(r.ctx); err != nil {
		return err
	}
	if err := r.kubelet.start(r.ctx); err != nil {
		return err
	}
	r.each([]promise{
		{"after a reboot: static pods come back, with their restarts counted", func(r *run) error { return r.back(f) }},
		{"after a reboot: the last state tells of the end", lastState},
		{"after a reboot: hostPort, volumes, network", func(r *run) error {
			return errors.Join(hostPort(r), hostNetwork(r), volumes(r), userNamespace(r))
		}},
		{"after a reboot: a pod that had ended stays as it was", messages},
		{"after a reboot: no address is leased but those of the new sandboxes", addresses},
		{"pods removed: containers, sandboxes, cgroups and volumes gone", removal},
	})
	return r.ctx.Err()
}

// ended: nothing of what was there runs, and nothing of it is forgotten.
func (r *run) ended(f found) error {
	pods, err1 := r.Runtime.ListPodSandbox(r.ctx, &cri.ListPodSandboxRequest{})
	containers, err2 := r.Runtime.ListContainers(r.ctx, &cri.ListContainersRequest{})
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	var errs []error
	if len(pods.Items) != len(f.Sandboxes) || len(containers.Containers) != len(f.Containers) {
		errs = append(errs, fmt.Errorf("%d of %d sandboxes and %d of %d containers are listed", len(pods.Items), len(f.Sandboxes),
			len(containers.Containers), len(f.Containers)))
	}
	for _, p := range pods.Items {
		s, err := r.Runtime.PodSandboxStatus(r.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.Id})
		if err == nil && (p.State != cri.PodSandboxState_SANDBOX_NOTREADY || s.Status.State != p.State || f.Sandboxes[p.Id] != s.Status.Metadata.Name) {
			err = fmt.Errorf("sandbox of %s: %v, %v", f.Sandboxes[p.Id], p, s.Status)
		}
		errs = append(errs, err)
	}
	for _, c := range containers.Containers {
		s, err := r.Runtime.ContainerStatus(r.ctx, &cri.ContainerStatusRequest{ContainerId: c.Id})
		if err == nil {
			err = f.endedWell(s.Status)
		}
		if err == nil && c.State != s.Status.State {
			err = fmt.Errorf("listed as %v", c.State)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("container %s: %w", f.Containers[c.Id], err))
		}
	}
	return errors.Join(errs...)
}

func (f found) endedWell(s *cri.ContainerStatus) error {
	if s.State != cri.ContainerState_CONTAINER_EXITED || s.FinishedAt < s.StartedAt || s.FinishedAt == 0 || s.StartedAt < s.CreatedAt {
		return fmt.Errorf("%v", s)
	}
	if code, ended := f.Codes[s.Id]; ended && code != s.ExitCode {
		return fmt.Errorf("it had ended with status %d: %v", code, s)
	} else if !ended && s.ExitCode == 0 {
		return fmt.Errorf("it ended with the node, and says that it ended well: %v", s)
	}
	if _, err := os.Stat(s.LogPath); err != nil {
		return fmt.Errorf("its log: %w", err)
	}
	return nil
}

func (r *run) imagesKept(f found) error {
	now, err := r.look()
	if err == nil && strings.Join(now.Images, " ") != strings.Join(f.Images, " ") {
		err = fmt.Errorf("%v, not %v", now.Images, f.Images)
	}
	return err
}

// removeOld does to one of the old sandboxes what kubeadm reset does.
func (r *run) removeOld(f found) error {
	for id, name := range f.Sandboxes {
		if !strings.HasPrefix(name, "late-") {
			continue
		}
		_, err1 := r.Runtime.StopPodSandbox(r.ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
		_, err2 := r.Runtime.RemovePodSandbox(r.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
		now, err3 := r.look()
		if err := errors.Join(err1, err2, err3); err != nil {
			return err
		}
		if now.Sandboxes[id] != "" {
			return errors.New("it is still listed")
		}
		for id, c := range now.Containers {
			if strings.HasPrefix(c, name+"/") {
				return fmt.Errorf("its container %s is still listed", id)
			}
		}
		return r.withdraw("late")
	}
	return errors.New("it is not there")
}

// back: the pods run again, in new sandboxes, and kubelet counts on from the restarts that the old containers tell it.
func (r *run) back(f found) error {
	if err := podsRun(r); err != nil {
		return err
	}
	now, err := r.restarts()
	if err != nil {
		return err
	}
	var errs []error
	for name, was := range f.Restarts {
		if now[name] != was+1 {
			errs = append(errs, fmt.Errorf("%s: %d restarts, after %d", name, now[name], was))
		}
	}
	lasting, err := r.containerIDs()
	for name, id := range lasting {
		if f.Containers[id] != "" {
			errs = append(errs, fmt.Errorf("%s is the container from before", name))
		}
	}
	return errors.Join(append(errs, err)...)
}

// containerIDs are the containers of the everlasting pods by their ids.
func (r *run) containerIDs() (map[string]string, error) {
	ids := map[string]string{}
	for _, name := range everlasting {
		p, err := r.pod(name)
		if err != nil {
			return nil, err
		}
		for _, c := range p.Status.ContainerStatuses {
			ids[name+"/"+c.Name] = c.id()
		}
	}
	return ids, nil
}

func lastState(r *run) error {
	p, err := r.pod("web")
	if err != nil {
		return err
	}
	t := p.container("web").LastState.Terminated
	if t == nil || t.ExitCode == 0 || t.Reason == "" || t.Reason == "Completed" || t.FinishedAt.IsZero() || t.FinishedAt.Before(t.StartedAt) {
		return fmt.Errorf("%v", p.container("web").LastState)
	}
	return nil
}

// addresses: the old sandboxes, which kubelet keeps as long as their containers tell the last state, hold none once it has
// stopped them.
func addresses(r *run) error { return r.until(soon, r.addressesFree) }

func (r *run) addressesFree() error {
	pods, err := r.Runtime.ListPodSandbox(r.ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{
		State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}}})
	if err != nil {
		return err
	}
	held := map[string]string{}
	for _, p := range pods.Items {
		s, err := r.Runtime.PodSandboxStatus(r.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.Id})
		if err != nil {
			return err
		}
		if ip := s.Status.Network.GetIp(); ip != "" {
			held[ip] = p.Metadata.Name
		}
	}
	var leased []string
	err = filepath.WalkDir(filepath.Join(r.Dir, "root"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && net.ParseIP(d.Name()) != nil {
			leased = append(leased, d.Name())
		}
		return err
	})
	if err == nil && (len(leased) != len(held) || len(held) == 0) {
		err = fmt.Errorf("%v are leased; pods hold %v", leased, held)
	}
	return err
}
