package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// machineClock sets the machine's clock to what it would be if nobody had set it, and an offset.
type machineClock struct {
	t     *testing.T
	ahead time.Duration // of CLOCK_BOOTTIME, which nobody sets
}

func bootTime(t *testing.T) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

func newMachineClock(t *testing.T) *machineClock {
	t.Helper()
	if os.Getenv("CRI_SERVER_TEST_CLOCK") == "" {
		t.Skip("only with CRI_SERVER_TEST_CLOCK, in a machine of its own: the clock is set")
	}
	c := &machineClock{t, time.Duration(time.Now().UnixNano()) - bootTime(t)}
	t.Cleanup(func() { c.set(0) })
	return c
}

func (c *machineClock) set(offset time.Duration) {
	c.t.Helper()
	ts := unix.NsecToTimespec(int64(bootTime(c.t) + c.ahead + offset))
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		c.t.Fatalf("clock: %v", err)
	}
}

// TestClockJumps: the clock is set while a container logs, an exec and a stop wait for their time to be over, and stats are
// taken. No time-out comes early or late by the jump; times stay in order.
func TestClockJumps(t *testing.T) {
	clock := newMachineClock(t)
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	pod := f.podConfig("jumps")
	id := f.runPod(pod)
	writer := f.runContainer(id, pod, containerConfig("writer", images.Busybox, "sh", "-c", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done"))
	file := filepath.Join(pod.LogDirectory, "writer.log")
	lines := func() int {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(b, []byte("\n"))
	}
	var newest int64
	for i, offset := range []time.Duration{time.Hour, -time.Hour, 0} {
		config := f.podConfig("jumps")
		config.Metadata.Name, config.Metadata.Attempt = "again", uint32(i)
		stubborn := f.runContainer(id, pod, containerConfig(fmt.Sprint("stubborn", i), images.Busybox, "sh", "-c", "trap '' TERM; echo set; while :; do sleep 0.1; done"))
		f.eventually("it ignores SIGTERM", func() bool {
			b, _ := os.ReadFile(filepath.Join(pod.LogDirectory, fmt.Sprintf("stubborn%d.log", i)))
			return bytes.Contains(b, []byte("set"))
		})
		f.cores(writer)
		waits := f.timeouts(writer, stubborn)
		before := lines()
		clock.set(offset)
		f.eventually("the log goes on", func() bool { return lines() > before+10 })
		f.cores(writer)
		f.answers()
		for range 2 {
			if err := <-waits; err != nil {
				t.Errorf("clock %v off: %v", offset, err)
			}
		}
		if st := f.containerStatus(stubborn); st.ExitCode != 137 || st.CreatedAt > st.StartedAt || st.StartedAt > st.FinishedAt {
			t.Errorf("clock %v off: created %d, started %d, finished %d, code %d", offset, st.CreatedAt, st.StartedAt, st.FinishedAt, st.ExitCode)
		}
		later := f.runPod(config)
		r, err := f.Runtime.PodSandboxStatus(f.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: later})
		if err != nil || r.Status.CreatedAt <= newest {
			t.Errorf("clock %v off: attempt %d is not newer than the one before: %d, %d, %v", offset, i, r.GetStatus().GetCreatedAt(), newest, err)
		}
		newest = r.GetStatus().GetCreatedAt()
		if _, err := f.Runtime.StopPodSandbox(f.ctx, &cri.StopPodSandboxRequest{PodSandboxId: later}); err != nil {
			t.Error(err)
		}
	}
	f.inOrder(file)
}

// timeouts has an exec and a stop wait for the end of their time, and tells what each was wrong about.
func (f *fixture) timeouts(idle, stubborn string) <-chan error {
	const patience = 5
	wrong := make(chan error, 2)
	began := time.Now() // by the monotonic clock
	early := func(what string, err error) error {
		if took := time.Since(began); took < patience*time.Second || took > time.Minute*10 {
			return fmt.Errorf("%s: after %v of %d s: %w", what, took, patience, err)
		}
		return nil
	}
	go func() {
		_, err := f.Runtime.ExecSync(f.ctx, &cri.ExecSyncRequest{ContainerId: idle, Cmd: []string{"sleep", "100000"}, Timeout: patience})
		if status.Code(err) != codes.DeadlineExceeded {
			wrong <- fmt.Errorf("exec: %w", err)
			return
		}
		wrong <- early("exec", err)
	}()
	go func() {
		_, err := f.Runtime.StopContainer(f.ctx, &cri.StopContainerRequest{ContainerId: stubborn, Timeout: patience})
		if err != nil {
			wrong <- fmt.Errorf("stop: %w", err)
			return
		}
		wrong <- early("stop", err)
	}()
	return wrong
}

// cores sees to it that a container is not said to use more processors than there are.
func (f *fixture) cores(id string) {
	f.t.Helper()
	r, err := f.Runtime.ContainerStats(f.ctx, &cri.ContainerStatsRequest{ContainerId: id})
	if err != nil {
		f.t.Errorf("stats: %v", err)
		return
	}
	cpu := r.Stats.GetCpu()
	if used := cpu.GetUsageNanoCores().GetValue(); used > uint64(2*runtime.NumCPU())*1e9 || cpu.GetTimestamp() <= 0 {
		f.t.Errorf("stats: %v", cpu)
	}
}

// inOrder sees to it that a log has each number once, and that each record is later than the one before.
func (f *fixture) inOrder(file string) {
	f.t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		f.t.Fatal(err)
	}
	var last time.Time
	n := 0
	for line := range bytes.Lines(b) {
		fields := bytes.Fields(line)
		at, err := time.Parse(time.RFC3339Nano, string(fields[0]))
		if err != nil || !at.After(last) || string(fields[len(fields)-1]) != fmt.Sprint(n) {
			f.t.Fatalf("line %d is %q, behind one of %v", n, line, last)
		}
		last = at
		n++
	}
}
