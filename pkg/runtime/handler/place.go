package handler

import (
	"context"
	"slices"

	"github.com/seed-9a14075a/cri-server/pkg/cgroupdriver"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// Place begins the cgroup that req's container will be in, which req then finishes, or says to the handler's OCI runtime how
// to make it. The caller calls Settle of the driver when the monitor has answered req.
func (h *Handler) Place(ctx context.Context, cgroups cgroupdriver.Driver, path string, req *monitor.CreateRequest) error {
	return h.place(ctx, cgroups, path, req, cgroups.Begin)
}

// PlaceIdle is Place for a process that only waits: see BeginIdle of the driver. An OCI runtime gets what it does from Place.
func (h *Handler) PlaceIdle(ctx context.Context, cgroups cgroupdriver.Driver, path string, req *monitor.CreateRequest) error {
	return h.place(ctx, cgroups, path, req, cgroups.BeginIdle)
}

func (h *Handler) place(ctx context.Context, cgroups cgroupdriver.Driver, path string, req *monitor.CreateRequest, begin cgroupdriver.Begin) error {
	if h.OCI == nil {
		var err error
		req.Cgroup, req.FinishCgroup, err = begin(ctx, path, req.Spec.Linux.Resources)
		return err
	}
	at := cgroups.OCI(path)
	req.Spec.Linux.CgroupsPath = at.CgroupsPath
	runtime := *h.OCI
	for _, arg := range at.Args {
		if !slices.Contains(runtime.Args, arg) {
			runtime.Args = append(slices.Clone(runtime.Args), arg)
		}
	}
	req.OCI, req.OOM = &runtime, at.Cgroup
	if at.Cgroup != nil {
		return nil
	}
	g, err := cgroups.Create(ctx, path, req.Spec.Linux.Resources) // an OCI runtime takes an empty cgroup as its own
	req.OOM = g
	return err
}
