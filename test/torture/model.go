package main

import (
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// state is what the model knows of a pod or a container.
type state int

const (
	wanted   state = iota // its making has not been acknowledged: it may be there or not
	created               // containers
	alive                 // pods: ready; containers: running, or ended by themselves
	ended                 // pods: not ready; containers: exited
	unwanted              // its removal has not been acknowledged
)

// pod is a pod of one worker, which alone changes it; who else reads it holds the model's lock.
type pod struct {
	name    string
	id      string
	config  *cri.PodSandboxConfig
	handler string
	port    int32
	dir     string // logs and counters
	serial  int    // of the next container

	state state
	moves int // odd while a call is under way that may change the state

	containers []*container
	ip         string
}

// container is a container of a pod; the same holds.
type container struct {
	pod    *pod
	name   string
	id     string
	config *cri.ContainerConfig

	seed    uint64
	steps   int64 // 0: writes until SIGTERM
	code    int32 // its exit status
	rotated int

	state   state
	moves   int
	stopped bool // a stop was asked for, so it may end before its last step
	killed  bool // and SIGKILL may have been what ended it
	failed  bool // its start was refused

	pid     int // as the checker saw it in its cgroup
	started string
}

// model is what has been acknowledged by cri-server.
type model struct {
	mu   sync.Mutex
	pods map[*pod]bool
	// images are those whose pull was acknowledged, or false those whose removal was.
	images map[string]bool
}

func newModel() *model { return &model{pods: map[*pod]bool{}, images: map[string]bool{}} }

// edit changes what is known.
func (m *model) edit(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// view is the model at one moment, in which what is under way can be told from what stays as it is.
type view struct {
	at         time.Time
	pods       map[string]seenPod
	containers map[string]seenContainer
	unsure     int // objects whose making was not acknowledged
}

type seenPod struct {
	*pod
	state state
	moves int
}

type seenContainer struct {
	*container
	state state
	moves int
}

func (m *model) view() view {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := view{at: time.Now(), pods: map[string]seenPod{}, containers: map[string]seenContainer{}}
	for p := range m.pods {
		if p.id == "" {
			v.unsure++
			continue
		}
		v.pods[p.id] = seenPod{p, p.state, p.moves}
		for _, c := range p.containers {
			if c.id == "" {
				v.unsure++
				continue
			}
			v.containers[c.id] = seenContainer{c, c.state, c.moves}
		}
	}
	return v
}

// same tells whether nothing was begun or ended with the pod since it was seen.
func (m *model) same(s seenPod) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pods[s.pod] && s.pod.moves == s.moves && s.moves%2 == 0
}

// sameContainer is same for a container.
func (m *model) sameContainer(s seenContainer) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pods[s.container.pod] && s.container.moves == s.moves && s.moves%2 == 0
}
