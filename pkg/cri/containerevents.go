package cri

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/runtime"
	"github.com/seed-9a14075a/cri-server/pkg/sandbox"
)

// eventQueue is how many events a subscriber may be behind before it is cut off. Starting a pod of two containers makes
// six of them.
const eventQueue = 1024

// clock gives the time in ns since 1970, strictly increasing: kubelet orders by it what it learns from events and from
// PodSandboxStatus. A picture is taken after its time, so that of two the later is never the older one.
type clock struct{ last atomic.Int64 }

func (c *clock) now() int64 {
	for {
		last := c.last.Load()
		now := max(time.Now().UnixNano(), last+1)
		if c.last.CompareAndSwap(last, now) {
			return now
		}
	}
}

// eventBus hands the events of sandboxes and containers to its subscribers. It has no goroutines: events are made by
// whoever changed something, cost no I/O, and never wait for a subscriber.
type eventBus struct {
	clock clock

	mu     sync.Mutex
	subs   map[*subscriber]bool
	closed bool
}

type subscriber struct {
	queue chan *runtimeapi.ContainerEventResponse // closed when the subscription is over
	why   error                                   // set before queue is closed
}

func (b *eventBus) subscribe() (*subscriber, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, errStopping
	}
	if b.subs == nil {
		b.subs = map[*subscriber]bool{}
	}
	sub := &subscriber{queue: make(chan *runtimeapi.ContainerEventResponse, eventQueue)}
	b.subs[sub] = true
	return sub, nil
}

var errStopping = fmt.Errorf("the server is stopping: %w", errdefs.ErrUnavailable)

func (b *eventBus) unsubscribe(sub *subscriber) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.end(sub, nil)
}

// end is called with mu held.
func (b *eventBus) end(sub *subscriber, why error) {
	if b.subs[sub] {
		delete(b.subs, sub)
		sub.why = why
		close(sub.queue)
	}
}

// close ends all subscriptions; there are no new ones.
func (b *eventBus) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for sub := range b.subs {
		b.end(sub, errStopping)
	}
}

// picture is a pod at some moment; nil when its sandbox is gone.
type picture func() (*runtimeapi.PodSandboxStatus, []*runtimeapi.ContainerStatus)

// publish makes events about one object from one picture of its pod. Pictures of the same pod are taken and queued one
// after the other, so a later event never shows an earlier state.
func (b *eventBus) publish(id string, types []runtimeapi.ContainerEventType, pod picture) {
	if len(types) == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.subs) == 0 {
		return
	}
	times := make([]int64, len(types))
	for i := range times {
		times[i] = b.clock.now()
	}
	sb, containers := pod()
	if sb == nil {
		return // kubelet has learnt of the sandbox's end and takes no event without a sandbox
	}
	for i, t := range types {
		e := &runtimeapi.ContainerEventResponse{
			ContainerId: id, ContainerEventType: t, CreatedAt: times[i], PodSandboxStatus: sb, ContainersStatuses: containers,
		}
		for sub := range b.subs {
			select {
			case sub.queue <- e:
			default:
				b.end(sub, status.Errorf(codes.ResourceExhausted,
					"the reader of events is more than %d behind and was cut off; list all pods before subscribing again", eventQueue))
			}
		}
	}
}

// GetContainerEvents sends the events of all pods from now on. The header is sent when the subscription has begun.
func (s *Server) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream runtimeapi.RuntimeService_GetContainerEventsServer) error {
	sub, err := s.events.subscribe()
	if err != nil {
		return err
	}
	defer s.events.unsubscribe(sub)
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case e, ok := <-sub.queue:
			if !ok {
				return sub.why
			}
			if err := stream.Send(e); err != nil {
				return err
			}
		}
	}
}

// containerChanged is told by the runtime.
func (s *Server) containerChanged(old, now *runtime.Container) {
	s.trim.changed()
	ctr := now
	if ctr == nil {
		ctr = old
	}
	s.events.publish(ctr.ID, containerEvents(old, now), func() (*runtimeapi.PodSandboxStatus, []*runtimeapi.ContainerStatus) {
		sb, err := s.sandboxes.Get(ctr.SandboxID)
		if err != nil {
			return nil, nil
		}
		return sandboxStatus(sb), s.containerStatuses(sb.ID)
	})
}

// containerEvents are what a change of a container means to kubelet.
func containerEvents(old, now *runtime.Container) []runtimeapi.ContainerEventType {
	was := runtime.Creating
	if old != nil {
		was = old.State
	}
	switch {
	case now == nil && was == runtime.Creating:
		return nil // nobody has seen it
	case now == nil:
		return []runtimeapi.ContainerEventType{runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT}
	case now.State == was:
		return nil
	}
	switch now.State {
	case runtime.Created:
		return []runtimeapi.ContainerEventType{runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT}
	case runtime.Running:
		return []runtimeapi.ContainerEventType{runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT}
	case runtime.Exited:
		stopped := runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
		if was == runtime.Created && !now.StartedAt.IsZero() && now.Reason != runtime.ReasonStartError {
			// It ran for so short a time that nobody saw it running.
			return []runtimeapi.ContainerEventType{runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, stopped}
		}
		return []runtimeapi.ContainerEventType{stopped}
	}
	return nil
}

// sandboxChanged is told by the sandboxes.
func (s *Server) sandboxChanged(old, now *sandbox.Sandbox) {
	s.trim.changed()
	sb := now
	if sb == nil {
		sb = old
		s.containers.ForgetRate(sb.ID)
	}
	s.events.publish(sb.ID, sandboxEvents(old, now), func() (*runtimeapi.PodSandboxStatus, []*runtimeapi.ContainerStatus) {
		if newer, err := s.sandboxes.Get(sb.ID); err == nil {
			sb = newer
		}
		return sandboxStatus(sb), s.containerStatuses(sb.ID)
	})
}

// sandboxEvents are what a change of a sandbox means to kubelet. It is stopped when pause has ended, which is after its
// containers: being not ready comes first.
func sandboxEvents(old, now *sandbox.Sandbox) []runtimeapi.ContainerEventType {
	var was sandbox.Sandbox
	if old != nil {
		was = *old
	}
	seen := old != nil && was.State != sandbox.Creating
	switch {
	case now == nil && seen:
		return []runtimeapi.ContainerEventType{runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT}
	case now == nil || now.State == sandbox.Creating:
		return nil
	case !seen:
		return []runtimeapi.ContainerEventType{
			runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT,
		}
	case now.State == sandbox.NotReady && was.Pid != 0 && now.Pid == 0:
		return []runtimeapi.ContainerEventType{runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT}
	}
	return nil
}

// containerStatuses are those of all of a sandbox's containers at one moment, the newest first: of several attempts
// kubelet's evented PLEG takes the first of the name for the current one.
func (s *Server) containerStatuses(sandboxID string) []*runtimeapi.ContainerStatus {
	var list []*runtimeapi.ContainerStatus
	for _, ctr := range slices.Backward(s.containers.OfSandbox(sandboxID)) {
		if ctr.State != runtime.Creating {
			list = append(list, s.containerStatus(ctr))
		}
	}
	return list
}
