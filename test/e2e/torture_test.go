package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// The server is killed at random moments while pods come and go; afterwards every call that was cut short can be
// repeated, nothing that was acknowledged is lost, and nothing is left. CRI_SERVER_TORTURE is the number of kills (a few in
// a plain run), CRI_SERVER_SEED repeats a run's moments.
func TestTorture(t *testing.T) {
	kills, _ := strconv.Atoi(os.Getenv("CRI_SERVER_TORTURE"))
	if kills == 0 {
		kills = 3
	}
	seed, _ := strconv.ParseUint(os.Getenv("CRI_SERVER_SEED"), 10, 64)
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d, %d kills", seed, kills)
	random := rand.New(rand.NewPCG(seed, seed))
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	witness := f.podConfig("witness")
	pod := f.runPod(witness)
	c := f.runContainer(pod, witness, containerConfig("w", images.Busybox, "sleep", "100000"))
	began := f.exec(c, "cut -d' ' -f22 /proc/1/stat")
	for kill := range kills {
		ctx, cancel := context.WithCancel(f.ctx)
		var workers sync.WaitGroup
		for w := range 4 {
			workers.Go(func() { f.churn(ctx, fmt.Sprintf("k%d-w%d", kill, w)) })
		}
		time.Sleep(time.Duration(random.IntN(400_000)) * time.Microsecond) // the moment of the crash
		if err := f.KillServer(); err != nil {
			t.Fatal(err)
		}
		cancel()
		workers.Wait()
		if err := f.StartServer(f.ctx); err != nil {
			t.Fatalf("kill %d: %v", kill, err)
		}
		if got := f.exec(c, "cut -d' ' -f22 /proc/1/stat"); got != began {
			t.Fatalf("kill %d: the witness was started anew", kill)
		}
		f.cleanUp(pod)
	}
	f.removePod(pod)
}

// churn runs and removes pods until ctx ends or the server is gone.
func (f *fixture) churn(ctx context.Context, name string) {
	for n := 0; ctx.Err() == nil; n++ {
		pod := f.podConfig(fmt.Sprintf("%s-%d", name, n))
		p, err := f.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod})
		if err != nil {
			return
		}
		c, err := f.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.PodSandboxId, SandboxConfig: pod,
			Config: containerConfig("c", images.Busybox, "sleep", "1000")})
		if err != nil {
			return
		}
		if _, err := f.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
			return
		}
		if _, err := f.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.ContainerId, Cmd: []string{"true"}, Timeout: 10}); err != nil {
			return
		}
		if _, err := f.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.PodSandboxId}); err != nil {
			return
		}
		if _, err := f.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.PodSandboxId}); err != nil {
			return
		}
	}
}

// cleanUp removes every pod but one, and compares with the state before the pods.
func (f *fixture) cleanUp(keep string) {
	f.t.Helper()
	pods, err := f.Runtime.ListPodSandbox(f.ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		f.t.Fatal(err)
	}
	seen := false
	for _, p := range pods.Items {
		if p.Id == keep {
			seen = true
			continue
		}
		f.ids = append(f.ids, p.Id)
		f.removePod(p.Id)
	}
	if !seen {
		f.t.Fatal("the witness is not listed")
	}
	containers, err := f.Runtime.ListContainers(f.ctx, &cri.ListContainersRequest{})
	if err != nil || len(containers.Containers) != 1 {
		f.t.Fatalf("containers after removal of all other pods: %v %v", containers, err)
	}
}
