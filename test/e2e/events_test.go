package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// watcher collects a stream of events.
type watcher struct {
	mu     sync.Mutex
	events []*cri.ContainerEventResponse
	err    error
	done   chan struct{}
}

// watch subscribes; when it returns, nothing is missed any more.
func (f *fixture) watch() *watcher {
	f.t.Helper()
	ctx, cancel := context.WithCancel(f.ctx)
	stream, err := f.Runtime.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	if err == nil {
		_, err = stream.Header()
	}
	if err != nil {
		f.t.Fatal(err)
	}
	w := &watcher{done: make(chan struct{})}
	f.t.Cleanup(func() { cancel(); <-w.done })
	go func() {
		defer close(w.done)
		for {
			e, err := stream.Recv()
			w.mu.Lock()
			if err != nil {
				w.err = err
				w.mu.Unlock()
				return
			}
			w.events = append(w.events, e)
			w.mu.Unlock()
		}
	}()
	return w
}

// of returns the events of one pod so far.
func (w *watcher) of(pod string) []*cri.ContainerEventResponse {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []*cri.ContainerEventResponse
	for _, e := range w.events {
		if e.PodSandboxStatus.GetId() == pod {
			list = append(list, e)
		}
	}
	return list
}

func (w *watcher) gone(pod string) bool {
	list := w.of(pod)
	return len(list) > 0 && list[len(list)-1].ContainerId == pod && list[len(list)-1].ContainerEventType == cri.ContainerEventType_CONTAINER_DELETED_EVENT
}

// story is a pod's events in short: who, what, the sandbox's state and those of the containers.
func story(list []*cri.ContainerEventResponse, names map[string]string) []string {
	var out []string
	for _, e := range list {
		var states []string
		for _, c := range e.ContainersStatuses {
			states = append(states, names[c.Id]+":"+strings.ToLower(strings.TrimPrefix(c.State.String(), "CONTAINER_")))
		}
		what := strings.TrimSuffix(strings.TrimPrefix(e.ContainerEventType.String(), "CONTAINER_"), "_EVENT")
		ready := strings.ToLower(strings.TrimPrefix(e.PodSandboxStatus.State.String(), "SANDBOX_"))
		out = append(out, strings.Join(append([]string{names[e.ContainerId], strings.ToLower(what), ready}, states...), " "))
	}
	return out
}

func (f *fixture) event(w *watcher, pod string, n int) *cri.ContainerEventResponse {
	f.t.Helper()
	f.eventually(fmt.Sprintf("%d events", n), func() bool { return len(w.of(pod)) >= n })
	return w.of(pod)[n-1]
}

// What kubelet's evented PLEG relies on: every change once, in order, with the whole pod as it then was.
func TestContainerEvents(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	w, second := f.watch(), f.watch()
	pod := f.podConfig("told")
	id := f.runPod(pod)
	long := f.runContainer(id, pod, containerConfig("long", images.Busybox, "sleep", "1000"))
	last := f.event(w, id, 4)
	st, err := f.Runtime.PodSandboxStatus(f.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil || st.Timestamp <= last.CreatedAt {
		t.Errorf("status at %d is not later than the event at %d (%v)", st.GetTimestamp(), last.CreatedAt, err)
	}
	short := f.runContainer(id, pod, containerConfig("short", images.Busybox, "sh", "-c", "read line"))
	f.event(w, id, 6)
	if _, err := f.Runtime.StopContainer(f.ctx, &cri.StopContainerRequest{ContainerId: short}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Runtime.RemoveContainer(f.ctx, &cri.RemoveContainerRequest{ContainerId: short}); err != nil {
		t.Fatal(err)
	}
	f.removePod(id)
	names := map[string]string{id: "pod", long: "long", short: "short"}
	for i, w := range []*watcher{w, second} {
		f.eventually("the pod's last event", func() bool { return w.gone(id) })
		got := story(w.of(id), names)
		// The short one may have ended by itself before it is seen running: its stdin is empty.
		for j, line := range got {
			if line == "short started ready short:exited long:running" {
				got[j] = "short started ready short:running long:running"
			}
		}
		want := []string{
			"pod created ready", "pod started ready",
			"long created ready long:created", "long started ready long:running",
			"short created ready short:created long:running", "short started ready short:running long:running",
			"short stopped ready short:exited long:running", "short deleted ready long:running",
			"long stopped notready long:exited", "pod stopped notready long:exited",
			"long deleted notready", "pod deleted notready",
		}
		if !slices.Equal(got, want) {
			t.Errorf("watcher %d:\n\t%s\nwant:\n\t%s", i, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
		}
	}
}

// Pause is the sandbox's process: its end is the sandbox's.
func TestEventOfPause(t *testing.T) {
	f := start(t, testnode.Options{})
	w := f.watch()
	id := f.runPod(f.podConfig("paused"))
	r, err := f.Runtime.PodSandboxStatus(f.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(r.Info["info"]), &info); err != nil || info.Pid <= 1 {
		t.Skipf("this runtime does not tell pause's pid: %v", err)
	}
	if err := unix.Kill(info.Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	e := f.event(w, id, 3)
	if e.ContainerId != id || e.ContainerEventType != cri.ContainerEventType_CONTAINER_STOPPED_EVENT ||
		e.PodSandboxStatus.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("got %v", e)
	}
	f.removePod(id)
	f.eventually("the pod's last event", func() bool { return w.gone(id) })
	if n := len(w.of(id)); n != 4 {
		t.Errorf("%d events, want 4", n)
	}
}

// Pods come and go at once: of each one the story is whole.
func TestEventsInParallel(t *testing.T) {
	const count = 20
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	w := f.watch()
	ids := make([][]string, count)
	var wg sync.WaitGroup
	for i := range count {
		wg.Go(func() {
			list, _, err := f.lifeOf(fmt.Sprintf("e%d", i))
			if ids[i] = list; err != nil {
				t.Error(err)
				return
			}
			if _, err := f.Runtime.RemovePodSandbox(f.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: list[0]}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, list := range ids {
		f.ids = append(f.ids, list...)
		if len(list) != 2 {
			continue // said above
		}
		f.eventually("the pod's last event", func() bool { return w.gone(list[0]) })
		var short []string
		for _, line := range story(w.of(list[0]), map[string]string{list[0]: "pod", list[1]: "c"}) {
			short = append(short, strings.Join(strings.Fields(line)[:2], " "))
		}
		if got := strings.Join(short, ", "); got != "pod created, pod started, c created, c started, c stopped, pod stopped, c deleted, pod deleted" {
			t.Error(got)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := 1; i < len(w.events); i++ {
		if w.events[i].CreatedAt <= w.events[i-1].CreatedAt {
			t.Errorf("event %d is of %d, the one before of %d", i, w.events[i].CreatedAt, w.events[i-1].CreatedAt)
		}
	}
}

// A client that never reads is no hindrance.
func TestEventsOfNoInterest(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	stream, err := f.Runtime.GetContainerEvents(f.ctx, &cri.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	pod := f.podConfig("unread")
	pod.Annotations = map[string]string{"long": strings.Repeat("x", 50<<10)} // fills the stream's window at once
	id := f.runPod(pod)
	c := containerConfig("c", images.Busybox, "true")
	for n := range 400 { // each has four events
		c.Metadata.Attempt = uint32(n)
		f.removeContainer(f.runContainer(id, pod, c))
	}
	f.removePod(id)
	n := 0
	for {
		if _, err = stream.Recv(); err != nil {
			break
		}
		n++
	}
	if status.Code(err) != codes.ResourceExhausted || n < 100 {
		t.Errorf("%d events, then %v", n, err)
	}
}

func (f *fixture) removeContainer(id string) {
	f.t.Helper()
	if _, err := f.Runtime.RemoveContainer(f.ctx, &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		f.t.Errorf("remove container: %v", err)
	}
}
