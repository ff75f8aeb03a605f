package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/inspect"
)

func newInspect() *cobra.Command {
	var e endpoint
	var output string
	cmd := &cobra.Command{
		Use:   "inspect POD|CONTAINER",
		Short: "Show a pod with its containers, or a container, down to the kernel",
		Long: `Show a pod with its containers, or a container: namespaces, cgroup and limits, layers, network, processes, and how
long each stage of its start took. Name it by id, by the beginning of an id, by NAME or by NAMESPACE/NAME.`,
		Args: exactArgs(1),
	}
	e.flags(cmd)
	outputFlag(cmd, &output)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkOutput(output); err != nil {
			return err
		}
		c, err := e.dial()
		if err != nil {
			return err
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), queryTimeout)
		defer cancel()
		err = c.inspect(ctx, cmd.OutOrStdout(), args[0], output)
		return e.explain(err)
	}
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return completeObjects(cmd.Context(), &e), cobra.ShellCompDirectiveNoFileComp
	}
	return cmd
}

// inspected is the JSON output.
type inspected struct {
	Pod        *inspect.Pod         `json:"pod,omitempty"`
	Containers []*inspect.Container `json:"containers,omitempty"`
}

func (c *client) inspect(ctx context.Context, w io.Writer, name, output string) error {
	found, err := c.find(ctx, name)
	if err != nil {
		return err
	}
	var out inspected
	ids := []string{found.id}
	if found.pod {
		if out.Pod, err = c.inspectPod(ctx, found.id); err != nil {
			return err
		}
		if ids, err = c.containersOf(ctx, found.id); err != nil {
			return err
		}
	}
	for _, id := range ids {
		ctr, err := c.inspectContainer(ctx, id)
		if err != nil {
			return err
		}
		out.Containers = append(out.Containers, ctr)
	}
	switch {
	case output == "json":
		return writeJSON(w, out)
	case found.pod:
		return out.Pod.WriteText(w, out.Containers)
	}
	return out.Containers[0].WriteText(w)
}

// object is a pod or a container that a name may mean.
type object struct {
	pod   bool
	id    string
	names []string
	text  string
}

func (c *client) objects(ctx context.Context) ([]object, error) {
	pods, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	containers, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	var list []object
	for _, p := range pods.GetItems() {
		m := p.GetMetadata()
		full := m.GetNamespace() + "/" + m.GetName()
		list = append(list, object{true, p.GetId(), []string{m.GetName(), full}, fmt.Sprintf("pod %s %.13s", full, p.GetId())})
	}
	for _, ctr := range containers.GetContainers() {
		n := ctr.GetMetadata().GetName()
		list = append(list, object{false, ctr.GetId(), []string{n}, fmt.Sprintf("container %s %.13s", n, ctr.GetId())})
	}
	return list, nil
}

// find resolves a name: an id, else the beginning of one, else a name. A name that means more than one is an error.
func (c *client) find(ctx context.Context, name string) (object, error) {
	list, err := c.objects(ctx)
	if err != nil {
		return object{}, err
	}
	return choose(list, name)
}

func choose(list []object, name string) (object, error) {
	for _, fits := range []func(object) bool{
		func(o object) bool { return o.id == name },
		func(o object) bool { return slices.Contains(o.names, name) },
		func(o object) bool { return len(name) >= 3 && strings.HasPrefix(o.id, name) },
	} {
		var found []object
		for _, o := range list {
			if fits(o) {
				found = append(found, o)
			}
		}
		switch len(found) {
		case 0:
			continue
		case 1:
			return found[0], nil
		}
		var texts []string
		for _, o := range found {
			texts = append(texts, o.text)
		}
		return object{}, fmt.Errorf("%q is more than one: %s: %w", name, strings.Join(texts, ", "), errdefs.ErrInvalidArgument)
	}
	return object{}, fmt.Errorf("no pod and no container is called %q: %w", name, errdefs.ErrNotFound)
}

func (c *client) containersOf(ctx context.Context, pod string) ([]string, error) {
	r, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: pod}})
	if err != nil {
		return nil, err
	}
	list := r.GetContainers()
	slices.SortStableFunc(list, func(a, b *runtimeapi.Container) int { return int(min(max(a.GetCreatedAt()-b.GetCreatedAt(), -1), 1)) })
	var ids []string
	for _, ctr := range list {
		ids = append(ids, ctr.GetId())
	}
	return ids, nil
}

func (c *client) inspectPod(ctx context.Context, id string) (*inspect.Pod, error) {
	r, err := c.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	if err != nil {
		return nil, err
	}
	return parse[inspect.Pod](r.GetInfo())
}

func (c *client) inspectContainer(ctx context.Context, id string) (*inspect.Container, error) {
	r, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		return nil, err
	}
	return parse[inspect.Container](r.GetInfo())
}

func parse[T any](info map[string]string) (*T, error) {
	v := new(T)
	if err := json.Unmarshal([]byte(info["info"]), v); err != nil {
		return nil, fmt.Errorf("the server's answer is not cri-server's: %w", err)
	}
	return v, nil
}

// completeObjects offers names and ids to the shell; without an answer it offers nothing.
func completeObjects(ctx context.Context, e *endpoint) []string {
	c, err := e.dial()
	if err != nil {
		return nil
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, queryTimeout/5)
	defer cancel()
	list, err := c.objects(ctx)
	if err != nil {
		return nil
	}
	var words []string
	for _, o := range list {
		words = append(words, o.names[len(o.names)-1], cobra.CompletionWithDesc(o.id[:min(13, len(o.id))], o.text))
	}
	slices.Sort(words)
	return slices.Compact(words)
}
