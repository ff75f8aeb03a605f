package runtime

import (
	"fmt"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/operation"
	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// recordVersion is raised when a reader of the old form would misread the new one; added fields don't raise it.
const recordVersion = 1

// record is a Container as it is kept on disk. CRI messages are kept in their wire form.
type record struct {
	SandboxID     string             `json:"sandbox_id"`
	Config        []byte             `json:"config"`
	Resources     []byte             `json:"resources,omitempty"`
	Handler       string             `json:"handler,omitempty"`
	ImageID       string             `json:"image_id"`
	LogDir        string             `json:"log_dir,omitempty"`
	LogPath       string             `json:"log_path,omitempty"`
	State         State              `json:"state"`
	CreatedAt     time.Time          `json:"created_at"`
	StartedAt     time.Time          `json:"started_at,omitzero"`
	FinishedAt    time.Time          `json:"finished_at,omitzero"`
	ExitCode      int32              `json:"exit_code,omitempty"`
	Reason        string             `json:"reason,omitempty"`
	Message       string             `json:"message,omitempty"`
	Pid           int                `json:"pid,omitempty"`
	CgroupPath    string             `json:"cgroup_path,omitempty"`
	Rootfs        rootfs.Rootfs      `json:"rootfs"`
	StopSignal    int                `json:"stop_signal,omitempty"`
	Process       *specs.Process     `json:"process,omitempty"`
	EnvBytes      monitor.EnvBytes   `json:"env_bytes,omitempty"` // of Process, where it is not UTF-8
	Filter        string             `json:"filter,omitempty"`
	Timeline      operation.Timeline `json:"timeline,omitzero"`
	StartTimeline operation.Timeline `json:"start_timeline,omitzero"`
}

func (c *Containers) save(ctr *Container) error {
	if ctr.Broken != "" {
		return fmt.Errorf("the record of container %s can't be read: %s", ctr.ID, ctr.Broken)
	}
	config, err := proto.Marshal(ctr.Config)
	if err != nil {
		return fmt.Errorf("record of container %s: %w", ctr.ID, err)
	}
	var resources []byte
	if ctr.Resources != nil {
		if resources, err = proto.Marshal(ctr.Resources); err != nil {
			return fmt.Errorf("record of container %s: %w", ctr.ID, err)
		}
	}
	process, env := monitor.SplitEnv(ctr.Process)
	err = c.records.Put(ctr.ID, record{
		SandboxID: ctr.SandboxID, Config: config, Resources: resources, Handler: ctr.Handler, ImageID: ctr.ImageID,
		LogDir: ctr.LogDir, LogPath: ctr.LogPath, State: ctr.State, CreatedAt: ctr.CreatedAt, StartedAt: ctr.StartedAt,
		FinishedAt: ctr.FinishedAt, ExitCode: ctr.ExitCode, Reason: ctr.Reason, Message: ctr.Message, Pid: ctr.Pid,
		CgroupPath: ctr.CgroupPath, Rootfs: ctr.Rootfs, StopSignal: int(ctr.StopSignal), Process: process, EnvBytes: env,
		Filter: ctr.Filter, Timeline: ctr.Timeline, StartTimeline: ctr.StartTimeline,
	})
	if err != nil {
		return fmt.Errorf("record of container %s: %w", ctr.ID, err)
	}
	return nil
}

func fromRecord(id string, r *record) (*Container, error) {
	ctr := &Container{
		ID: id, SandboxID: r.SandboxID, Config: &runtimeapi.ContainerConfig{}, Handler: r.Handler, ImageID: r.ImageID,
		LogDir: r.LogDir, LogPath: r.LogPath, State: r.State, CreatedAt: r.CreatedAt, StartedAt: r.StartedAt,
		FinishedAt: r.FinishedAt, ExitCode: r.ExitCode, Reason: r.Reason, Message: r.Message, Pid: r.Pid,
		CgroupPath: r.CgroupPath, Rootfs: r.Rootfs, StopSignal: unix.Signal(r.StopSignal), Process: r.Process,
		Filter: r.Filter, Timeline: r.Timeline, StartTimeline: r.StartTimeline,
	}
	r.EnvBytes.Restore(ctr.Process)
	if err := proto.Unmarshal(r.Config, ctr.Config); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if ctr.Config.Metadata == nil {
		return nil, fmt.Errorf("config has no metadata")
	}
	if r.Resources != nil {
		ctr.Resources = &runtimeapi.LinuxContainerResources{}
		if err := proto.Unmarshal(r.Resources, ctr.Resources); err != nil {
			return nil, fmt.Errorf("resources: %w", err)
		}
	}
	return ctr, nil
}
