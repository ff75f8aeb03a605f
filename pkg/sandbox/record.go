package sandbox

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/network"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
)

// recordVersion is raised when a reader of the old form would misread the new one; added fields don't raise it.
const recordVersion = 1

// record is a Sandbox as it is kept on disk. The CRI message is kept in its wire form, which every version of the API
// reads.
type record struct {
	Config       []byte             `json:"config"`
	Handler      string             `json:"handler,omitempty"`
	State        State              `json:"state"`
	Stopping     bool               `json:"stopping,omitempty"`
	Released     bool               `json:"released,omitempty"`
	CreatedAt    time.Time          `json:"created_at"`
	Pid          int                `json:"pid,omitempty"`
	NetNS        string             `json:"netns,omitempty"`
	Network      *network.Result    `json:"network,omitempty"`
	CgroupPath   string             `json:"cgroup_path,omitempty"`
	CgroupParent string             `json:"cgroup_parent,omitempty"`
	Files        Files              `json:"files"`
	Overhead     []byte             `json:"overhead,omitempty"`
	Resources    []byte             `json:"resources,omitempty"`
	Timeline     operation.Timeline `json:"timeline,omitzero"`
}

func (s *Sandboxes) save(sb *Sandbox) error {
	if sb.Broken != "" {
		return fmt.Errorf("the record of sandbox %s can't be read: %s", sb.ID, sb.Broken)
	}
	config, err := proto.Marshal(sb.Config)
	overhead, err1 := proto.Marshal(sb.Overhead)
	resources, err2 := proto.Marshal(sb.Resources)
	if err := errors.Join(err, err1, err2); err != nil {
		return fmt.Errorf("record of sandbox %s: %w", sb.ID, err)
	}
	timeline := sb.Timeline
	timeline.Parts = nil // they are not worth writing with each change
	err = s.records.Put(sb.ID, record{
		Config: config, Handler: sb.Handler, State: sb.State, Stopping: sb.Stopping, Released: sb.Released,
		CreatedAt: sb.CreatedAt, Pid: sb.Pid, NetNS: sb.NetNS, Network: sb.Network, CgroupPath: sb.CgroupPath, CgroupParent: sb.CgroupParent,
		Files: sb.Files, Overhead: overhead, Resources: resources, Timeline: timeline,
	})
	if err != nil {
		return fmt.Errorf("record of sandbox %s: %w", sb.ID, err)
	}
	return nil
}

// unmarshal: nothing and empty resources are the same.
func unmarshal(b []byte) (*runtimeapi.LinuxContainerResources, error) {
	if len(b) == 0 {
		return nil, nil
	}
	r := &runtimeapi.LinuxContainerResources{}
	return r, proto.Unmarshal(b, r)
}

func fromRecord(id string, r *record) (*Sandbox, error) {
	sb := &Sandbox{
		ID: id, Config: &runtimeapi.PodSandboxConfig{}, Handler: r.Handler, State: r.State, Stopping: r.Stopping,
		Released: r.Released, CreatedAt: r.CreatedAt, Pid: r.Pid, NetNS: r.NetNS, Network: r.Network, CgroupPath: r.CgroupPath,
		CgroupParent: r.CgroupParent, Files: r.Files, Timeline: r.Timeline,
	}
	if err := proto.Unmarshal(r.Config, sb.Config); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if sb.Config.Metadata == nil {
		return nil, fmt.Errorf("config has no metadata")
	}
	var err1, err2 error
	sb.Overhead, err1 = unmarshal(r.Overhead)
	sb.Resources, err2 = unmarshal(r.Resources)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("resources: %w", err)
	}
	return sb, nil
}
