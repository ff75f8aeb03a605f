package e2e

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Fifty pods come and go at once; every one has its own address and answers.
func TestParallelPods(t *testing.T) {
	const count = 50
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	began := time.Now()
	var wg sync.WaitGroup
	var mu sync.Mutex
	ips := map[string]string{}
	for i := range count {
		wg.Go(func() {
			name := fmt.Sprintf("p%d", i)
			id, ip, err := f.lifeOf(name)
			mu.Lock()
			defer mu.Unlock()
			f.ids = append(f.ids, id...)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			if other := ips[ip]; other != "" || ip == "" {
				t.Errorf("%s has the address %q of %q", name, ip, other)
			}
			ips[ip] = name
		})
	}
	slowest := f.listWhile(&wg)
	t.Logf("%d pods up in %s; slowest list %s", count, time.Since(began), slowest)
	if slowest > 2*time.Second {
		t.Errorf("a list took %s", slowest)
	}
	began = time.Now()
	pods, err := f.Runtime.ListPodSandbox(f.ctx, &cri.ListPodSandboxRequest{})
	if err != nil || len(pods.Items) != count {
		t.Fatalf("%d pods, %v", len(pods.GetItems()), err)
	}
	for _, p := range pods.Items {
		wg.Go(func() {
			if _, err := f.Runtime.StopPodSandbox(f.ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.Id}); err != nil {
				t.Errorf("stop: %v", err)
			}
			if _, err := f.Runtime.RemovePodSandbox(f.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.Id}); err != nil {
				t.Errorf("remove: %v", err)
			}
		})
	}
	wg.Wait()
	t.Logf("%d pods gone in %s", count, time.Since(began))
}

// lifeOf runs a pod with a container, and returns their ids and the pod's address.
func (f *fixture) lifeOf(name string) (ids []string, ip string, err error) {
	pod := f.podConfig(name)
	p, err := f.Runtime.RunPodSandbox(f.ctx, &cri.RunPodSandboxRequest{Config: pod})
	if err != nil {
		return nil, "", fmt.Errorf("run: %w", err)
	}
	ids = append(ids, p.PodSandboxId)
	c, err := f.Runtime.CreateContainer(f.ctx, &cri.CreateContainerRequest{PodSandboxId: p.PodSandboxId, SandboxConfig: pod,
		Config: containerConfig("c", images.Busybox, "sleep", "1000")})
	if err != nil {
		return ids, "", fmt.Errorf("create: %w", err)
	}
	ids = append(ids, c.ContainerId)
	if _, err := f.Runtime.StartContainer(f.ctx, &cri.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		return ids, "", fmt.Errorf("start: %w", err)
	}
	x, err := f.Runtime.ExecSync(f.ctx, &cri.ExecSyncRequest{ContainerId: c.ContainerId, Cmd: []string{"hostname"}, Timeout: 30})
	if err != nil || string(x.Stdout) != name+"\n" {
		return ids, "", fmt.Errorf("exec: %v %w", x, err)
	}
	s, err := f.Runtime.PodSandboxStatus(f.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.PodSandboxId})
	if err != nil {
		return ids, "", fmt.Errorf("status: %w", err)
	}
	return ids, s.Status.Network.GetIp(), nil
}

// listWhile lists containers until the group is done, and returns how long the slowest list took.
func (f *fixture) listWhile(wg *sync.WaitGroup) (slowest time.Duration) {
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for {
		began := time.Now()
		if _, err := f.Runtime.ListContainers(f.ctx, &cri.ListContainersRequest{}); err != nil {
			f.t.Errorf("list: %v", err)
		}
		slowest = max(slowest, time.Since(began))
		select {
		case <-done:
			return slowest
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// A call whose client gave up is not lost: the same call again gets its result, and there is one object only.
func TestRetryJoins(t *testing.T) {
	f := start(t, testnode.Options{})
	retry := func(what string, call func(context.Context) error) {
		t.Helper()
		for n := range 40 {
			ctx, cancel := context.WithTimeout(f.ctx, time.Duration(n*n)*100*time.Microsecond)
			err := call(ctx)
			cancel()
			if err == nil {
				return
			}
			if c := status.Code(err); c != codes.DeadlineExceeded && c != codes.Canceled {
				t.Fatalf("%s, try %d: %v", what, n, err)
			}
		}
		t.Fatalf("%s: not done after 40 tries", what)
	}
	retry("pull", func(ctx context.Context) error {
		_, err := f.Image.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: busybox}})
		return err
	})
	pod := f.podConfig("joined")
	var id, c string
	retry("run pod", func(ctx context.Context) error {
		r, err := f.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod})
		id = r.GetPodSandboxId()
		return err
	})
	retry("create container", func(ctx context.Context) error {
		r, err := f.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: id, SandboxConfig: pod,
			Config: containerConfig("c", images.Busybox, "sleep", "1000")})
		c = r.GetContainerId()
		return err
	})
	retry("start container", func(ctx context.Context) error {
		_, err := f.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c})
		return err
	})
	f.ids = append(f.ids, id, c)
	if all := f.listing(); len(all) != 3 {
		t.Errorf("listed: %q", all)
	}
	f.exec(c, "true")
	retry("stop pod", func(ctx context.Context) error {
		_, err := f.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
		return err
	})
	retry("remove pod", func(ctx context.Context) error {
		_, err := f.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
		return err
	})
}
