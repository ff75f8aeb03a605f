package cri

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcmetadata "google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/runtime"
	"github.com/seed-9a14075a/cri-server/pkg/sandbox"
)

const (
	created = runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT
	started = runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
	stopped = runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
	deleted = runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
)

type types = []runtimeapi.ContainerEventType

func TestContainerEvents(t *testing.T) {
	in := func(s runtime.State) *runtime.Container { return &runtime.Container{State: s} }
	ran := func(reason string) *runtime.Container {
		return &runtime.Container{State: runtime.Exited, StartedAt: time.Now(), Reason: reason}
	}
	for name, tt := range map[string]struct {
		old, now *runtime.Container
		want     types
	}{
		"being created":          {nil, in(runtime.Creating), nil},
		"given up":               {in(runtime.Creating), nil, nil},
		"created":                {in(runtime.Creating), in(runtime.Created), types{created}},
		"started":                {in(runtime.Created), in(runtime.Running), types{started}},
		"resources changed":      {in(runtime.Running), in(runtime.Running), nil},
		"ended":                  {in(runtime.Running), ran(runtime.ReasonError), types{stopped}},
		"ended at once":          {in(runtime.Created), ran(runtime.ReasonCompleted), types{started, stopped}},
		"stopped before started": {in(runtime.Created), in(runtime.Exited), types{stopped}},
		"can't be executed":      {in(runtime.Created), ran(runtime.ReasonStartError), types{stopped}},
		"start time comes late":  {in(runtime.Exited), ran(runtime.ReasonCompleted), nil},
		"removed":                {in(runtime.Exited), nil, types{deleted}},
		"unreadable, removed":    {in(runtime.Unknown), nil, types{deleted}},
	} {
		if got := containerEvents(tt.old, tt.now); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

func TestSandboxEvents(t *testing.T) {
	in := func(s sandbox.State, pid int) *sandbox.Sandbox { return &sandbox.Sandbox{State: s, Pid: pid} }
	for name, tt := range map[string]struct {
		old, now *sandbox.Sandbox
		want     types
	}{
		"being created":              {nil, in(sandbox.Creating, 0), nil},
		"given up":                   {in(sandbox.Creating, 0), nil, nil},
		"ready":                      {in(sandbox.Creating, 0), in(sandbox.Ready, 7), types{created, started}},
		"resources changed":          {in(sandbox.Ready, 7), in(sandbox.Ready, 7), nil},
		"about to be stopped":        {in(sandbox.Ready, 7), in(sandbox.NotReady, 7), nil},
		"stopped":                    {in(sandbox.NotReady, 7), in(sandbox.NotReady, 0), types{stopped}},
		"pause died":                 {in(sandbox.Ready, 7), in(sandbox.NotReady, 0), types{stopped}},
		"released after pause died":  {in(sandbox.NotReady, 0), in(sandbox.NotReady, 0), nil},
		"removed":                    {in(sandbox.NotReady, 0), nil, types{deleted}},
		"nobody knew, nobody misses": {nil, nil, nil},
	} {
		if got := sandboxEvents(tt.old, tt.now); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

func TestClock(t *testing.T) {
	var c clock
	var wg sync.WaitGroup
	all := make([][]int64, 4)
	for i := range all {
		wg.Go(func() {
			for range 10000 {
				all[i] = append(all[i], c.now())
			}
		})
	}
	wg.Wait()
	seen := map[int64]bool{}
	for _, times := range all {
		if !slices.IsSorted(times) {
			t.Error("went back")
		}
		for _, at := range times {
			if seen[at] {
				t.Fatal("the same time twice")
			}
			seen[at] = true
		}
	}
	c.last.Store(time.Now().Add(time.Hour).UnixNano()) // the machine's clock was set back
	if a, b := c.now(), c.now(); b <= a {
		t.Errorf("%d, then %d", a, b)
	}
}

func onePod() (*runtimeapi.PodSandboxStatus, []*runtimeapi.ContainerStatus) {
	return &runtimeapi.PodSandboxStatus{Id: "pod"}, []*runtimeapi.ContainerStatus{{Id: "a"}, {Id: "b"}}
}

func subscribe(t *testing.T, b *eventBus) *subscriber {
	t.Helper()
	sub, err := b.subscribe()
	if err != nil {
		t.Fatal(err)
	}
	return sub
}

func TestEventBus(t *testing.T) {
	b := &eventBus{}
	b.publish("nobody listens", types{created}, func() (*runtimeapi.PodSandboxStatus, []*runtimeapi.ContainerStatus) {
		t.Error("a picture was taken for nobody")
		return nil, nil
	})
	first, second := subscribe(t, b), subscribe(t, b)
	b.publish("pod", types{created, started}, onePod)
	b.publish("pod", nil, onePod)
	b.publish("a", types{stopped}, func() (*runtimeapi.PodSandboxStatus, []*runtimeapi.ContainerStatus) { return nil, nil })
	b.publish("a", types{created}, onePod)
	for _, sub := range []*subscriber{first, second} {
		last := int64(0)
		for _, want := range []struct {
			id  string
			typ runtimeapi.ContainerEventType
		}{{"pod", created}, {"pod", started}, {"a", created}} {
			e := <-sub.queue
			if e.ContainerId != want.id || e.ContainerEventType != want.typ || e.CreatedAt <= last ||
				e.PodSandboxStatus.GetId() != "pod" || len(e.ContainersStatuses) != 2 {
				t.Errorf("got %v, want %v", e, want)
			}
			last = e.CreatedAt
		}
		if len(sub.queue) != 0 {
			t.Errorf("%d events too many", len(sub.queue))
		}
	}
	b.unsubscribe(first)
	b.unsubscribe(first) // twice does no harm
	b.close()
	if _, ok := <-second.queue; ok || !errdefs.IsUnavailable(second.why) {
		t.Errorf("closed: %v", second.why)
	}
	if _, err := b.subscribe(); !errdefs.IsUnavailable(err) {
		t.Errorf("subscribe after close: %v", err)
	}
}

// A reader that does not read loses its own subscription, and nothing else happens.
func TestSlowReaderIsCutOff(t *testing.T) {
	b := &eventBus{}
	slow, fast := subscribe(t, b), subscribe(t, b)
	for i := range 2 * eventQueue {
		b.publish(strconv.Itoa(i), types{created}, onePod)
		if e := <-fast.queue; e.ContainerId != strconv.Itoa(i) {
			t.Fatalf("the other reader got %v", e)
		}
	}
	n := 0
	for e := range slow.queue { // what it has is without a gap
		if e.ContainerId != strconv.Itoa(n) {
			t.Fatalf("event %d is of %s", n, e.ContainerId)
		}
		n++
	}
	if n != eventQueue || status.Code(slow.why) != codes.ResourceExhausted {
		t.Errorf("%d events, then %v", n, slow.why)
	}
}

// eventStream is a client that reads when it is told to.
type eventStream struct {
	grpc.ServerStream
	ctx    context.Context
	begun  chan struct{}
	events chan *runtimeapi.ContainerEventResponse
}

func (s *eventStream) Context() context.Context                        { return s.ctx }
func (s *eventStream) SendHeader(grpcmetadata.MD) error                { close(s.begun); return nil }
func (s *eventStream) Send(e *runtimeapi.ContainerEventResponse) error { s.events <- e; return nil }

func TestGetContainerEvents(t *testing.T) {
	open := func(s *Server) (*eventStream, context.CancelFunc, <-chan error) {
		ctx, cancel := context.WithCancel(context.Background())
		stream := &eventStream{ctx: ctx, begun: make(chan struct{}), events: make(chan *runtimeapi.ContainerEventResponse)}
		done := make(chan error, 1)
		go func() { done <- s.GetContainerEvents(&runtimeapi.GetEventsRequest{}, stream) }()
		<-stream.begun
		return stream, cancel, done
	}
	s := &Server{}
	stream, cancel, done := open(s)
	s.events.publish("a", types{created}, onePod)
	if e := <-stream.events; e.ContainerId != "a" {
		t.Errorf("got %v", e)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the client left: %v", err)
	}
	if len(s.events.subs) != 0 {
		t.Error("the subscription is still there")
	}

	stream, cancel, done = open(s)
	defer cancel()
	for range eventQueue + 2 { // one may be on its way
		s.events.publish("a", types{created}, onePod)
	}
	go func() {
		for range stream.events {
		}
	}()
	if err := <-done; status.Code(err) != codes.ResourceExhausted {
		t.Errorf("cut off: %v", err)
	}
	close(stream.events)

	_, cancel, done = open(s)
	defer cancel()
	s.events.close()
	if err := <-done; status.Code(toStatus(err)) != codes.Unavailable {
		t.Errorf("the server stops: %v", err)
	}
}
