package testnode

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RemovePods stops and removes every pod and returns how many there were.
func (n *Node) RemovePods(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	r, err := n.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return 0, fmt.Errorf("list pods: %w", err)
	}
	var errs []error
	for _, p := range r.Items {
		_, err := n.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.Id})
		errs = append(errs, err)
		_, err = n.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.Id})
		errs = append(errs, err)
	}
	return len(r.Items), errors.Join(errs...)
}

// WarmUp runs and removes one pod, so that what a node makes once and keeps (a bridge, netfilter tables) is there.
func (n *Node) WarmUp(ctx context.Context) error {
	dir := filepath.Join(n.Dir, "tmp", "warm-up")
	config := &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "warm-up", Namespace: "test", Uid: "warm-up"}, LogDirectory: dir,
		PortMappings: []*cri.PortMapping{{Protocol: cri.Protocol_TCP, ContainerPort: 80, HostPort: 11999}},
		Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: n.opts.Cgroup}}
	r, err := n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		return fmt.Errorf("warm up: run: %w", err)
	}
	if _, err := n.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: r.PodSandboxId}); err != nil {
		return fmt.Errorf("warm up: stop: %w", err)
	}
	if _, err := n.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: r.PodSandboxId}); err != nil {
		return fmt.Errorf("warm up: remove: %w", err)
	}
	return nil
}

// Leaks compares the node with an earlier snapshot. Since teardown may go on after the RPC returned, what is there too
// much is looked at again for up to 5 s. What is named by one of keep is not counted.
func (n *Node) Leaks(before Snapshot, ids []string, keep ...string) []string {
	dirs := []string{n.State, filepath.Join(n.Dir, "root"), filepath.Join(n.Dir, "tmp"), "/run"}
	var left []string
	for look := range 100 {
		last := left
		left = append(slices.DeleteFunc(before.Added(Take()), func(l string) bool {
			return strings.HasPrefix(l, "cgroup ") && strings.Contains(l, n.opts.Cgroup) && !ofContainer(l)
		}), Find(ids, dirs...)...)
		for _, c := range n.cgroups() {
			if ofContainer(c) && !slices.Contains(left, "cgroup "+c) {
				left = append(left, "cgroup "+c)
			}
		}
		left = slices.DeleteFunc(left, func(l string) bool {
			return slices.ContainsFunc(keep, func(id string) bool { return strings.Contains(l, id) })
		})
		if look > 0 {
			left = Still(last, left)
		}
		if len(left) == 0 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return left
}

// StopServer asks the server to end and waits for that; after 20 s it kills it and says so.
func (n *Node) StopServer() error {
	if n.server == nil || n.server.Process == nil {
		return nil
	}
	select {
	case <-n.exited:
		return nil
	default:
	}
	_ = n.server.Process.Signal(syscall.SIGTERM)
	select {
	case <-n.exited:
		return nil
	case <-time.After(20 * time.Second):
		_ = n.server.Process.Kill()
		<-n.exited
		return errors.New("test node: the server did not end within 20 s of SIGTERM")
	}
}

// Stop ends everything the node started and removes its directory. Processes other than the server and its monitor
// that are still there are an error; so are mounts.
func (n *Node) Stop() error {
	errs := []error{n.StopServer()}
	if n.conn != nil {
		errs = append(errs, n.conn.Close())
	}
	if n.registry != nil {
		_ = n.registry.Close()
	}
	left := endNode(n.opts.Command != "")
	if len(left) > 0 {
		errs = append(errs, fmt.Errorf("test node: left behind:\n\t%s", Lines(left)))
	}
	errs = append(errs, stopSlices(n.opts.Cgroup))
	if left := n.removeCgroups(); len(left) > 0 {
		errs = append(errs, fmt.Errorf("test node: left cgroups:\n\t%s", Lines(left)))
	}
	unmountBelow(n.State)
	unmountBelow(n.Dir)
	if n.temp {
		errs = append(errs, os.RemoveAll(n.Dir))
	}
	return errors.Join(errs...)
}

// cgroups lists the node's cgroups in all hierarchies, parents first.
func (n *Node) cgroups() []string {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*" + n.opts.Cgroup)
	unified, _ := filepath.Glob("/sys/fs/cgroup" + n.opts.Cgroup)
	var found []string
	for _, root := range append(roots, unified...) {
		if !IsCgroup(root) {
			continue
		}
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				found = append(found, path)
			}
			return nil
		})
	}
	return found
}

var objectID = regexp.MustCompile(`[0-9a-f]{12}`)

// ofContainer tells a container's cgroup from the parents that clients name, as kubelet does, and have to remove.
func ofContainer(cgroup string) bool { return objectID.MatchString(filepath.Base(cgroup)) }

// removeCgroups removes the node's parent cgroups, which stay empty after the last pod; those of containers that are
// still there are returned.
func (n *Node) removeCgroups() []string {
	var left []string
	all := n.cgroups()
	for i := len(all) - 1; i >= 0; i-- {
		if ofContainer(all[i]) {
			left = append(left, all[i])
		}
		_ = unix.Rmdir(all[i])
	}
	return left
}

// endNode ends the processes that outlive a server on purpose: the monitor, or with another runtime its shims.
func endNode(other bool) []string {
	return endDescendants(os.Getppid(), func(p Process) bool { return other || strings.Contains(p.Comm+" "+p.Cmdline, "cri-monitor") })
}

// unmountBelow detaches the mounts at and below dir, so that removing dir doesn't reach into them.
func unmountBelow(dir string) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return
	}
	lines := strings.Split(string(b), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if f := strings.Fields(lines[i]); len(f) > 5 && (f[4] == dir || strings.HasPrefix(f[4], dir+"/")) {
			_ = unix.Unmount(f[4], unix.MNT_DETACH)
		}
	}
}
