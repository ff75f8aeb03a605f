// Command soak cycles pods at full speed and tells whether anything grows:
//
//	soak [-for 1h] [-workers 2] [-every 10s] [-samples FILE] [-profiles DIR [-at 2000,20000]]
//
// A cycle is a pod with one container: run, create, start, an exec, stop, remove. Every few seconds the workers rest for a
// moment, so that what is measured is what stays; what is still being cleaned up behind a call's answer counts, but for network
// interfaces that the kernel is about to remove (see settle). cri-server's garbage is collected before its heap is measured. The
// first sixth of the run is left out: caches and the Go heap find their size there. The page shows for each measure the slope per
// 1 000 pods with its 95 % confidence interval.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

type soak struct {
	node    *testnode.Node
	cgroup  string
	length  time.Duration
	every   time.Duration
	workers int
	samples string

	profiles string  // directory of heap profiles
	at       []int64 // after so many pods

	rest   sync.RWMutex // workers hold it for a cycle
	cycles atomic.Int64
	taken  []float64 // cycles at each sample
	series [][]float64
}

func main() {
	s := &soak{cgroup: fmt.Sprintf("/cri-node-%d", os.Getpid())}
	var repo, at string
	flag.DurationVar(&s.length, "for", time.Hour, "how long")
	flag.DurationVar(&s.every, "every", 10*time.Second, "time between two samples")
	flag.IntVar(&s.workers, "workers", 2, "how many pods are cycled at a time")
	flag.StringVar(&s.samples, "samples", "", "write the samples to this `file`")
	flag.StringVar(&s.profiles, "profiles", "", "write profiles of cri-server's heap to this `directory`")
	flag.StringVar(&at, "at", "2000,5000,10000,20000,50000,100000", "after so many pods")
	flag.StringVar(&repo, "repo", ".", "where bin and .cache are")
	flag.Parse()
	var err error
	if s.at, err = numbers(at); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if err := testnode.Isolate(nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := s.run(repo); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

func (s *soak) run(repo string) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := testnode.ReapOrphans(); err != nil {
		return err
	}
	if repo, err = filepath.Abs(repo); err != nil {
		return err
	}
	if s.node, err = testnode.Start(ctx, testnode.Options{Repo: repo, Cgroup: s.cgroup, Config: "log_level = \"warn\"\n"}); err != nil {
		return err
	}
	defer func() {
		_, rerr := s.node.RemovePods(context.WithoutCancel(ctx))
		err = errors.Join(err, rerr, s.node.Stop())
	}()
	if _, err := s.node.Image.PullImage(ctx, &cri.PullImageRequest{Image: image}); err != nil {
		return fmt.Errorf("pull: %w", err)
	}
	if err := s.node.WarmUp(ctx); err != nil {
		return err
	}
	if err := s.soak(ctx); err != nil {
		return fmt.Errorf("after %d pods: %w\n%s", s.cycles.Load(), err, s.node.LogTail())
	}
	return s.report()
}

// soak has the workers cycle pods, and measures while they rest.
func (s *soak) soak(ctx context.Context) error {
	working, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var workers sync.WaitGroup
	defer workers.Wait()
	began := time.Now()
	for w := range s.workers {
		workers.Go(func() {
			for n := 0; working.Err() == nil && time.Since(began) < s.length; n++ {
				s.rest.RLock()
				err := s.cycle(ctx, fmt.Sprintf("w%d-%d", w, n))
				s.rest.RUnlock()
				if err != nil {
					stop(fmt.Errorf("cycle: %w", err))
				}
				s.cycles.Add(1)
			}
		})
	}
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	for time.Since(began) < s.length {
		select {
		case <-working.Done():
			return context.Cause(working)
		case <-tick.C:
		}
		s.rest.Lock()
		v, err := s.sample(ctx)
		s.rest.Unlock()
		if err != nil {
			stop(nil)
			return err
		}
		if time.Since(began) > s.length/6 {
			s.taken, s.series = append(s.taken, float64(s.cycles.Load())), append(s.series, v)
		}
	}
	return nil
}

var image = &cri.ImageSpec{Image: "registry.k8s.io/" + images.Busybox}

// cycle is one pod's life.
func (s *soak) cycle(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	logs := filepath.Join(s.node.Dir, "tmp", name)
	pod := &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "soak", Uid: name}, LogDirectory: logs,
		Linux: &cri.LinuxPodSandboxConfig{}}
	p, err := s.node.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod})
	if err != nil {
		return fmt.Errorf("run: %w", err)
	}
	c, err := s.node.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.PodSandboxId, SandboxConfig: pod,
		Config: &cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: "c"}, Image: image, LogPath: "c.log",
			Command: []string{"sh", "-c", "echo begun; exec sleep 1000"}, Linux: &cri.LinuxContainerConfig{}}})
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	if _, err := s.node.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	r, err := s.node.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.ContainerId, Cmd: []string{"echo", name}, Timeout: 60})
	if err != nil || string(r.Stdout) != name+"\n" {
		return fmt.Errorf("exec: %v: %w", r, err)
	}
	if _, err := s.node.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.PodSandboxId}); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	if _, err := s.node.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.PodSandboxId}); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	return os.RemoveAll(logs)
}

// report prints the table, and writes the samples.
func (s *soak) report() error {
	if s.samples != "" {
		f, err := os.Create(s.samples)
		if err != nil {
			return err
		}
		defer f.Close()
		for i, v := range s.series {
			fmt.Fprintln(f, s.taken[i], v)
		}
	}
	fmt.Printf("%d pods in %v, %d workers, %d samples\n\n", s.cycles.Load(), s.length, s.workers, len(s.series))
	fmt.Println("| measure | at first | at last | slope per 1 000 pods, 95 % interval | 0 within |\n|---|---|---|---|---|")
	for i, name := range names {
		var y []float64
		for _, v := range s.series {
			y = append(y, v[i])
		}
		t := trend(name, s.taken, y)
		within := "yes"
		if !t.level() {
			within = "no"
		}
		if math.IsInf(t.Half, 0) {
			within = "too few samples"
		}
		fmt.Printf("| %s | %.0f | %.0f | %+.3f ± %.3f | %s |\n", name, t.First, t.Last, t.Slope, t.Half, within)
	}
	return nil
}
