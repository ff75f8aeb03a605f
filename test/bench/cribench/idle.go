package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// idle is what a runtime does when its containers do nothing and nobody calls.
type idle struct {
	Containers int     `json:"containers"`
	Seconds    float64 `json:"seconds"`
	Daemon     float64 `json:"daemon_percent"`  // of one core
	Monitor    float64 `json:"monitor_percent"` // of one core: what there is once per node beside the daemon
}

// idling measures the CPU time of the daemon and its monitor, with as many containers as are listed.
func idling(ctx context.Context, d *daemon, s size, r *result) error {
	if !d.idle {
		return nil
	}
	if err := d.fill(ctx, s.Idle); err != nil {
		return err
	}
	settle(ctx, 2*rest) // what follows a burst of pods is not idling
	before, begin := d.processTimes(), time.Now()
	settle(ctx, time.Duration(s.IdleSecs)*time.Second)
	after, took := d.processTimes(), time.Since(begin).Seconds()
	r.Idle = &idle{Containers: s.Idle, Seconds: took,
		Daemon: 100 * (after[0] - before[0]).Seconds() / took, Monitor: 100 * (after[1] - before[1]).Seconds() / took}
	return ctx.Err()
}

// processTimes is the CPU time that the daemon and its monitor have used.
func (d *daemon) processTimes() (t [2]time.Duration) {
	for _, pid := range d.group.members() {
		switch {
		case pid == d.pid():
			t[0] += processTime(pid)
		case d.monitor != "" && comm(pid) == d.monitor:
			t[1] += processTime(pid)
		}
	}
	return t
}

// processTime is the CPU time of a process with its threads: utime and stime of proc_pid_stat(5), in ticks of 10 ms.
func processTime(pid int) time.Duration {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // comm may hold anything
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// podSize is how many containers a pod has where many are wanted.
const podSize = 10

// fill starts pods of ten containers that wait until there are so many.
func (d *daemon) fill(ctx context.Context, containers int) error {
	l, err := d.rt.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return err
	}
	n := (containers - len(l.Containers)) / podSize
	first := d.nextFew(n)
	return each(n, 4, func(i int) error {
		p, err := d.sandbox(ctx, first+i, nil)
		for c := 0; c < podSize && err == nil; c++ {
			_, err = d.add(ctx, p, fmt.Sprintf("c%d", c), limits{image: pauseImage, cmd: []string{"/pause"}}, nil)
		}
		return err
	})
}
