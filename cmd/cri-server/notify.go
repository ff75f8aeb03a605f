package main

import (
	"context"
	"log/slog"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sdNotify tells systemd what goes on (sd_notify(3)); without it nothing happens.
func sdNotify(log *slog.Logger) func(string) {
	return func(state string) {
		if _, err := systemd.SdNotify(false, state); err != nil {
			log.Warn("systemd is not notified", "error", err)
		}
	}
}

// How the socket is asked, for a watchdog that waits for limit (WatchdogSec=).
const (
	asksPerLimit  = 3
	ticksPerLimit = 60
	// patience is for how many ticks an answer may be missing. They are those of a goroutine of this server, not of the
	// wall: where nothing here gets a processor, or memory, they are as late as the answer, and the server is not taken
	// for one that hangs. One that does is ended within twice the limit.
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
	for ticks := 1; ; ticks++ {
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
		if ticks < patience {
			d.notify("WATCHDOG=1")
		} else if ticks == patience {
			d.log.Warn("watchdog: no answer from our own socket", "waited", patience*tick)
		}
	}
}

// monotonic is CLOCK_MONOTONIC in ns, which a reload message carries.
func monotonic() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0
	}
	return t.Nano()
}
