package runtime

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/spec"
)

// Update changes the resources of a created or running container. Zero and empty fields stay as they are (CRI
// UpdateContainerResources). All or nothing.
func (c *Containers) Update(ctx context.Context, id string, res *runtimeapi.LinuxContainerResources) error {
	ctr, err := c.Get(id)
	if err != nil {
		return err
	}
	if res == nil {
		return nil
	}
	unlock, err := c.locks.Lock(ctx, ctr.ID)
	if err != nil {
		return fmt.Errorf("container %s is busy: %w", ctr.ID, err)
	}
	defer unlock()
	if ctr, err = c.Get(ctr.ID); err != nil {
		return err
	}
	if ctr.State != Created && ctr.State != Running {
		return fmt.Errorf("container %s is %s, its resources can't be changed: %w", ctr.ID, ctr.State, errdefs.ErrFailedPrecondition)
	}
	if score := res.OomScoreAdj; score < -1000 || score > 1000 { // proc_pid_oom_score_adj(5)
		return fmt.Errorf("oom_score_adj %d is not between -1000 and 1000: %w", score, errdefs.ErrInvalidArgument)
	}
	merged := merge(ctr.Resources, res) // memory and swap limits only make sense together
	lr, err := spec.Resources(c.cfg.Host, merged)
	if err != nil {
		return err
	}
	op := operation.FromContext(ctx)
	op.Stage("cgroup")
	if err := faultpoint.Hit("container.update.cgroup"); err != nil {
		return fmt.Errorf("update container %s: %w", ctr.ID, err)
	}
	if err := c.cfg.Cgroups.Update(ctx, ctr.CgroupPath, lr); err != nil {
		return fmt.Errorf("update container %s: %w", ctr.ID, err)
	}
	if res.OomScoreAdj != 0 {
		if err := c.setOOMScore(ctr, res.OomScoreAdj); err != nil {
			return fmt.Errorf("update container %s: oom_score_adj: %w", ctr.ID, err)
		}
	}
	op.Stage("record")
	if err := faultpoint.Hit("container.update.record"); err != nil {
		return fmt.Errorf("update container %s: %w", ctr.ID, err)
	}
	_, err = c.change(ctr.ID, func(n *Container) { n.Resources = merged })
	return err
}

// setOOMScore gives all processes of a container the score, as far as this node lets us lower it. Processes to come
// inherit it from their parents.
func (c *Containers) setOOMScore(ctr *Container, score int64) error {
	pids, err := c.cfg.Cgroups.Pids(ctr.CgroupPath)
	if err != nil {
		return err
	}
	text := []byte(strconv.FormatInt(max(score, int64(c.cfg.Host.OOMScoreAdjMin)), 10))
	for _, pid := range pids {
		err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), text, 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// merge lays the set fields of an update over the resources that were asked for before.
func merge(old, update *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	m := &runtimeapi.LinuxContainerResources{}
	if old != nil {
		m = proto.Clone(old).(*runtimeapi.LinuxContainerResources)
	}
	set := func(to *int64, from int64) {
		if from != 0 {
			*to = from
		}
	}
	set(&m.CpuPeriod, update.CpuPeriod)
	set(&m.CpuQuota, update.CpuQuota)
	set(&m.CpuShares, update.CpuShares)
	set(&m.MemoryLimitInBytes, update.MemoryLimitInBytes)
	set(&m.OomScoreAdj, update.OomScoreAdj)
	set(&m.MemorySwapLimitInBytes, update.MemorySwapLimitInBytes)
	if update.CpusetCpus != "" {
		m.CpusetCpus = update.CpusetCpus
	}
	if update.CpusetMems != "" {
		m.CpusetMems = update.CpusetMems
	}
	if len(update.HugepageLimits) > 0 {
		m.HugepageLimits = update.HugepageLimits
	}
	if len(update.Unified) > 0 {
		if m.Unified == nil {
			m.Unified = map[string]string{}
		}
		maps.Copy(m.Unified, update.Unified)
	}
	return m
}

// ReopenLog closes and opens a running container's log file anew, after it was renamed for rotation.
func (c *Containers) ReopenLog(ctx context.Context, id string) error {
	ctr, err := c.Get(id)
	if err != nil {
		return err
	}
	if ctr.State != Running {
		return fmt.Errorf("container %s is %s, its log can't be reopened: %w", ctr.ID, ctr.State, errdefs.ErrFailedPrecondition)
	}
	if err := faultpoint.Hit("container.reopen"); err != nil {
		return fmt.Errorf("reopen log of container %s: %w", ctr.ID, err)
	}
	if err := c.cfg.Monitor.ReopenLog(ctx, ctr.ID); err != nil {
		return fmt.Errorf("reopen log of container %s: %w", ctr.ID, err)
	}
	return nil
}
