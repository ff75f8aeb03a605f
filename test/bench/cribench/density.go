package main

import (
	"context"
	"fmt"
	"os"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// growth is how long pods take to start when there are so many.
type growth struct {
	Pods int     `json:"pods"` // the last of those counted
	P50  float64 `json:"p50"`
	P95  float64 `json:"p95"`
	N    int     `json:"n"`
}

// memory is what pods cost, KiB.
type memory struct {
	Pods    int     `json:"pods"`
	PerPod  float64 `json:"processes_per_pod"`     // Pss of processes there are because of pods, without their own programs
	Daemon  float64 `json:"daemon"`                // Pss of what there is once per node
	Anon    float64 `json:"daemon_anonymous"`      // of it: what the daemon itself has allocated
	Monitor float64 `json:"monitor,omitempty"`     // of it: the monitor's
	Growth  float64 `json:"daemon_growth_per_pod"` // since there were no pods
	Kernel  float64 `json:"kernel_per_pod"`        // charged to the pods' cgroup; negative: not told
}

// listTimeout is far above what any list takes, but one that hangs.
const listTimeout = 20 * time.Second

const window = 20 // pods whose start is averaged

// grow starts pods and leaves them; memory is measured as they get more.
func grow(ctx context.Context, d *daemon, s size, r *result) error {
	marks := s.Grow
	if d.slow {
		marks = s.GrowPeers
	}
	settle(ctx, rest)
	none := d.measureMemory(0, 0)
	var all samples
	for _, mark := range marks {
		for len(all.Values) < mark {
			_, err := d.begin(ctx, d.next(), limits{}, func(call string, took time.Duration) {
				if call == podStart {
					all.add(ms(took))
				}
			})
			if err != nil {
				return fmt.Errorf("pod %d: %w", len(all.Values)+1, err)
			}
			if n := len(all.Values); n == window && mark > window || n == mark {
				last := samples{Values: all.Values[max(0, n-window):]}
				r.Growth = append(r.Growth, growth{Pods: n, P50: last.at(50), P95: last.at(95), N: len(last.Values)})
			}
		}
		settle(ctx, rest)
		r.Memory = append(r.Memory, d.measureMemory(mark, none.Daemon))
		if err := d.saveProfile(ctx, fmt.Sprintf("heap-%d", mark), "heap"); err != nil {
			return err
		}
	}
	return nil
}

// rest is how long pods are left alone before memory is measured: what daemons give back when nothing happens is theirs no
// more.
const rest = 5 * time.Second

// pause is how long a runtime is left alone between pods that end and pods that start in parallel.
const pause = time.Second

// settle gives daemons the time to collect garbage and to look at their pods.
func settle(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// measureMemory tells the processes apart: the daemon and its monitor; the pods' own programs, which are sh and sleep; the rest
// is there because of pods.
func (d *daemon) measureMemory(pods int, before float64) memory {
	m := memory{Pods: pods, Kernel: d.group.kernelMemory() / float64(max(1, pods))}
	for _, pid := range d.group.members() {
		switch name := comm(pid); {
		case pid == d.pid():
			m.Daemon += pss(pid, "Pss")
			m.Anon = pss(pid, "Pss_Anon")
		case d.monitor != "" && name == d.monitor:
			m.Daemon += pss(pid, "Pss")
			m.Monitor += pss(pid, "Pss")
		case name == "sh" || name == "sleep":
		default:
			m.PerPod += pss(pid, "Pss")
		}
	}
	m.PerPod /= float64(max(1, pods))
	m.Growth = (m.Daemon - before) / float64(max(1, pods))
	return m
}

// lists is how long the calls that kubelet makes again and again take.
type lists struct {
	Containers int                 `json:"containers"`
	Calls      map[string]*samples `json:"calls"`
}

// listing makes pods of ten containers and lists them.
func listing(ctx context.Context, d *daemon, s size, r *result) error {
	marks := s.Lists
	if d.slow {
		marks = s.ListsPeers
	}
	for _, mark := range marks {
		if err := d.fill(ctx, mark); err != nil {
			return err
		}
		settle(ctx, rest)
		l := lists{Containers: mark}
		err := d.listAll(ctx, mark, &l)
		r.Lists = append(r.Lists, l)
		if err != nil {
			return err
		}
	}
	return nil
}

// listAll calls each list again and again. One that fails ends it, with what was measured before kept.
func (d *daemon) listAll(ctx context.Context, want int, l *lists) error {
	m := meter(func(call string, took time.Duration) { record(&l.Calls, call, ms(took)) })
	for _, c := range d.listCalls(want) {
		for range c.times {
			if err := c.do(ctx, m); err != nil {
				return err
			}
		}
	}
	return nil
}

// listCall is a list that is called so many times.
type listCall struct {
	name  string
	times int
	f     func(ctx context.Context) error
}

func (c listCall) do(ctx context.Context, m meter) error {
	return m.do(c.name, func() error {
		ctx, cancel := context.WithTimeout(ctx, listTimeout)
		defer cancel()
		return c.f(ctx)
	})
}

// listCalls are the lists of a node with so many containers.
func (d *daemon) listCalls(want int) []listCall {
	complete := func(n int, err error) error {
		if err == nil && n != want {
			err = fmt.Errorf("%d of %d listed", n, want)
		}
		return err
	}
	return []listCall{
		{"ListContainers", 200, func(ctx context.Context) error {
			x, err := d.rt.ListContainers(ctx, &cri.ListContainersRequest{})
			return complete(len(x.GetContainers()), err)
		}},
		{"ListPodSandbox", 200, func(ctx context.Context) error {
			_, err := d.rt.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
			return err
		}},
		{"ListContainerStats", 100, func(ctx context.Context) error {
			x, err := d.rt.ListContainerStats(ctx, &cri.ListContainerStatsRequest{})
			return complete(len(x.GetStats()), err)
		}},
		{"ListPodSandboxStats", 50, func(ctx context.Context) error {
			_, err := d.rt.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
			return err
		}},
	}
}

// parent is named as the cgroups of test nodes are, which several runs at a time leave to each other.
func parent() string { return fmt.Sprintf("/cri-node-bench-%d", os.Getpid()) }
