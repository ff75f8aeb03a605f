package runtime

import (
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/clock"
)

// createdAt is now, and after the pod's other containers, those of its earlier sandboxes too: kubelet goes by the newest.
func (c *Containers) createdAt(pod *Pod, config *runtimeapi.ContainerConfig) time.Time {
	const podUID = "io.kubernetes.pod.uid"
	uid := config.GetLabels()[podUID]
	c.mu.RLock()
	defer c.mu.RUnlock()
	var others []time.Time
	for _, ctr := range c.byID {
		if ctr.SandboxID == pod.ID || uid != "" && ctr.Config.GetLabels()[podUID] == uid {
			others = append(others, ctr.CreatedAt)
		}
	}
	return clock.After(time.Now(), others...)
}

// order sees to it that a container was not started before it was created, and did not end before it was started, whatever
// was done to the clock meanwhile.
func (n *Container) order() {
	earliest := n.CreatedAt
	if !n.StartedAt.IsZero() {
		n.StartedAt = clock.NotBefore(n.StartedAt, earliest)
		earliest = n.StartedAt
	}
	if !n.FinishedAt.IsZero() {
		n.FinishedAt = clock.NotBefore(n.FinishedAt, earliest)
	}
}
