package main

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// How the socket is asked, for a watchdog that waits for limit (WatchdogSec=).
const (
	asksPerLimit  = 3
	ticksPerLimit = 60
	// patience is for how many ticks an answer may be missing before the watchdog is not fed any more. Ticks in which the
	// server was not let run are not counted: it is as slow as the machine, and a restart would make that worse.
	patience = ticksPerLimit / 3
)

// watchdog keeps systemd from restarting us as long as the socket answers; the returned function ends it. It asks
// through the socket, as kubelet would: a process that runs but doesn't answer is to be restarted.
func (d *daemon) watchdog(socket string) (stop func()) {
	limit, err := systemd.SdWatchdogEnabled(false)
	if err != nil || limit <= 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.feed(ctx, socket, limit)
	}()
	return func() {
		cancel()
		<-done
	}
}

func (d *daemon) feed(ctx context.Context, socket string, limit time.Duration) {
	// gRPC's own delay between attempts to connect grows to two minutes.
	conn, err := dial(socket, grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: limit,
		Backoff: backoff.Config{BaseDelay: limit / ticksPerLimit, Multiplier: 1, MaxDelay: limit / ticksPerLimit}}))
	if err != nil {
		d.log.Error("watchdog", "error", err)
		return
	}
	defer conn.Close()
	client := runtimeapi.NewRuntimeServiceClient(conn)
	pause := time.NewTicker(limit / asksPerLimit)
	defer pause.Stop()
	for {
		d.ask(ctx, client, limit/ticksPerLimit)
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
	}
}

// ask puts one question and returns with its answer, however late that is, or with the end of ctx.
func (d *daemon) ask(ctx context.Context, client runtimeapi.RuntimeServiceClient, tick time.Duration) {
	answer := make(chan error, 1)
	go func() {
		_, err := client.Version(ctx, &runtimeapi.VersionRequest{}, grpc.WaitForReady(true))
		answer <- err
	}()
	waited, before := 0, d.delayed()
	for begin := time.Now(); ; begin = time.Now() {
		select {
		case err := <-answer:
			switch {
			case ctx.Err() != nil:
			case err != nil:
				d.log.Warn("watchdog: our own socket answers with an error", "error", err)
			default:
				d.notify("WATCHDOG=1")
			}
			return
		case <-time.After(tick):
		}
		now := d.delayed()
		late := time.Since(begin) - tick + now - before // too late for itself, or others of our threads were
		before = now
		if waited == patience {
			continue
		}
		if late < tick/2 {
			waited++
		}
		if waited < patience {
			d.notify("WATCHDOG=1")
		} else {
			d.log.Warn("watchdog: no answer from our own socket", "waited", patience*tick)
		}
	}
}

// runDelay is how long this process's threads have been ready to run and were not let, together: the second field of
// /proc/PID/task/TID/schedstat, in ns (Documentation/scheduler/sched-stats.rst). A quota of the cgroup counts too. A thread
// that ends takes its share away; without CONFIG_SCHED_INFO it is always 0.
func runDelay() time.Duration {
	files, _ := filepath.Glob("/proc/self/task/*/schedstat") // the pattern is good
	var sum time.Duration
	for _, f := range files {
		b, _ := os.ReadFile(f) // the thread may have ended
		if fields := strings.Fields(string(b)); len(fields) == 3 {
			ns, _ := strconv.ParseInt(fields[1], 10, 64)
			sum += time.Duration(ns)
		}
	}
	return sum
}
