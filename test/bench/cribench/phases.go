package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// latency takes pods through their life one after the other.
func latency(ctx context.Context, d *daemon, s size, r *result) error {
	before := d.group.cpu()
	// Reading the CPU takes some 20 us, which is not counted: each call is timed inside.
	m := meter(func(call string, took time.Duration) {
		now := d.group.cpu()
		record(&r.Calls, call, ms(took))
		if call != podStart && call != podEnd {
			record(&r.CPU, call, ms(now-before))
		}
		before = now
	})
	for range s.Cycles {
		begin := d.group.cpu()
		before = begin
		p, err := d.begin(ctx, d.next(), limits{}, m)
		if err != nil {
			return err
		}
		started := d.group.cpu()
		record(&r.CPU, podStart, ms(started-begin))
		for range 2 {
			before = d.group.cpu()
			if err := m.do("ExecSync", func() error { return d.exec(ctx, p.container) }); err != nil {
				return err
			}
		}
		before = d.group.cpu()
		ending := before
		if err := d.end(ctx, p, m); err != nil {
			return err
		}
		ended := d.group.cpu()
		record(&r.CPU, podEnd, ms(ended-ending))
		record(&r.CPU, podLife, ms(started-begin+ended-ending))
	}
	return nil
}

// limited starts pods whose container has a tenth of a CPU.
func limited(ctx context.Context, d *daemon, s size, r *result) error {
	for range max(2, s.Cycles/2) {
		p, err := d.begin(ctx, d.next(), limits{cpu: true}, func(call string, took time.Duration) {
			if call == podStart {
				record(&r.Calls, podStart+", 100 m CPU limit", ms(took))
			}
		})
		if err != nil {
			return err
		}
		if err := d.end(ctx, p, nil); err != nil {
			return err
		}
	}
	return nil
}

// parallel is pods started, and then stopped and removed, by several clients at once.
type parallel struct {
	Workers int                 `json:"workers"`
	Start   samples             `json:"start_pods_per_s"` // by pass
	End     samples             `json:"end_pods_per_s"`
	Calls   map[string]*samples `json:"calls"`
}

// parallelism takes more pods of a runtime that is quick, for else it has a tenth of a second to be measured in.
func parallelism(ctx context.Context, d *daemon, s size, r *result) error {
	for i, workers := range s.Workers {
		if len(r.Parallel) <= i {
			r.Parallel = append(r.Parallel, parallel{Workers: workers})
		}
		to := &r.Parallel[i]
		var mu sync.Mutex
		m := meter(func(call string, took time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			record(&to.Calls, call, ms(took))
		})
		of := s.PerWorker
		if d.slow {
			of = s.PeersWorker
		}
		n := max(8, workers*of)
		pods, first := make([]*pod, n), d.nextFew(n)
		settle(ctx, pause) // what the kernel does for pods that are gone is not for these
		begin := time.Now()
		err := each(n, workers, func(i int) (err error) {
			pods[i], err = d.begin(ctx, first+i, limits{}, m)
			return err
		})
		if err != nil {
			return fmt.Errorf("%d in parallel: %w", workers, err)
		}
		to.Start.add(float64(n) / time.Since(begin).Seconds())
		begin = time.Now()
		if err := each(n, workers, func(i int) error { return d.end(ctx, pods[i], m) }); err != nil {
			return fmt.Errorf("%d in parallel: %w", workers, err)
		}
		to.End.add(float64(n) / time.Since(begin).Seconds())
	}
	return nil
}

// probes is what execs at a given rate cost.
type probes struct {
	Rate    float64 `json:"rate"`    // wanted, per s
	Reached float64 `json:"reached"` // ended, per s
	Cores   float64 `json:"cores"`   // CPU seconds per second
	P50     float64 `json:"p50"`
	P99     float64 `json:"p99"`
}

// probing runs 100 exec probes a second over ten pods. With 64 under way a probe is left out.
func probing(ctx context.Context, d *daemon, s size, r *result) error {
	const rate, most = 100, 64
	pods := make([]*pod, 10)
	for i := range pods {
		var err error
		if pods[i], err = d.begin(ctx, d.next(), limits{}, nil); err != nil {
			return err
		}
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	var took samples
	var running atomic.Int64
	begin, cpu := time.Now(), d.group.cpu()
	tick := time.NewTicker(time.Second / rate)
	defer tick.Stop()
	for i := range rate * s.ProbeSecs {
		<-tick.C
		if running.Load() >= most {
			continue
		}
		running.Add(1)
		wg.Go(func() {
			defer running.Add(-1)
			b := time.Now()
			err := d.exec(ctx, pods[i%len(pods)].container)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = err
				return
			}
			took.add(ms(time.Since(b)))
		})
	}
	wg.Wait()
	wall := time.Since(begin).Seconds()
	r.Probes = &probes{Rate: rate, Reached: float64(len(took.Values)) / wall, Cores: (d.group.cpu() - cpu).Seconds() / wall, P50: took.at(50), P99: took.at(99)}
	return failed
}

// logs is how fast a container's output gets into its log.
type logs struct {
	MBPerS   float64 `json:"mb_per_s"` // of what the container wrote
	CPUPerGB float64 `json:"cpu_s_per_gb"`
}

// logging runs a container that writes lines of 128 bytes as fast as they are taken, from the time stamp of the first to the
// container's end and the last line in the file.
func logging(ctx context.Context, d *daemon, s size, r *result) error {
	const chunk = 4 << 20 // cat from memory is a cheap source
	script := fmt.Sprintf(`yes "$(head -c 127 /dev/zero | tr '\0' x)" | head -c %d >/dev/shm/f
sleep 1; i=0; while [ $i -lt %d ]; do cat /dev/shm/f; i=$((i+1)); done`, chunk, s.LogMB/4)
	number := d.next()
	file := filepath.Join(d.podConfig(number).LogDirectory, "c.log")
	p, err := d.begin(ctx, number, limits{cmd: []string{"sh", "-c", script}}, nil)
	if err != nil {
		return err
	}
	cpu := d.group.cpu()
	payload := float64(s.LogMB / 4 * chunk)
	for deadline := time.Now().Add(callTimeout); ; time.Sleep(2 * time.Millisecond) {
		x, err := d.rt.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: p.container})
		if err != nil {
			return err
		}
		size := fileSize(file)
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: %d bytes after %v", file, size, callTimeout)
		}
		if x.Status.State != cri.ContainerState_CONTAINER_EXITED || float64(size) < payload*(128+39)/128 { // stamps make lines longer
			continue
		}
		end := time.Now()
		begin, err := firstStamp(file)
		if err != nil {
			return err
		}
		r.Logs = &logs{MBPerS: payload / 1e6 / end.Sub(begin).Seconds(), CPUPerGB: (d.group.cpu() - cpu).Seconds() / (payload / 1e9)}
		return d.end(ctx, p, nil)
	}
}

// firstStamp is the time of a CRI log's first line.
func firstStamp(file string) (time.Time, error) {
	f, err := os.Open(file)
	if err != nil {
		return time.Time{}, err
	}
	defer f.Close()
	b := make([]byte, 64)
	n, _ := f.Read(b)
	stamp, _, _ := strings.Cut(string(b[:n]), " ")
	return time.Parse(time.RFC3339Nano, stamp)
}

// restart is the time from the start of a daemon to its being ready with its pods.
type restart struct {
	Pods int     `json:"pods"`
	MS   float64 `json:"ms"`
}

func restarting(ctx context.Context, d *daemon, s size, r *result) error {
	have, marks := 0, s.Restarts
	if d.slow {
		marks = s.RestartsPeers
	}
	for _, n := range marks {
		first := d.nextFew(n - have)
		if err := each(n-have, 4, func(i int) error { _, err := d.begin(ctx, first+i, limits{}, nil); return err }); err != nil {
			return err
		}
		have = n
		var took samples
		for range 3 {
			if err := d.terminate(); err != nil {
				return err
			}
			t, err := d.start(ctx)
			if err != nil {
				return err
			}
			begin := time.Now()
			if err := d.ready(ctx, n); err != nil {
				return err
			}
			took.add(ms(t + time.Since(begin)))
		}
		r.Restarts = append(r.Restarts, restart{Pods: n, MS: took.at(50)})
	}
	_, err := d.rt.Version(ctx, &cri.VersionRequest{})
	return err
}
