package main

import (
	"context"
	"log/slog"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
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

// watchdog keeps systemd from restarting us as long as the socket answers; the returned function ends it. It asks
// through the socket, as kubelet would: a process that runs but doesn't answer is to be restarted.
func (d *daemon) watchdog(socket string) (stop func()) {
	interval, err := systemd.SdWatchdogEnabled(false)
	if err != nil || interval <= 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.feed(ctx, socket, interval/3)
	}()
	return func() {
		cancel()
		<-done
	}
}

func (d *daemon) feed(ctx context.Context, socket string, interval time.Duration) {
	conn, err := dial(socket)
	if err != nil {
		d.log.Error("watchdog", "error", err)
		return
	}
	defer conn.Close()
	client := runtimeapi.NewRuntimeServiceClient(conn)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		call, cancel := context.WithTimeout(ctx, interval)
		_, err := client.Version(call, &runtimeapi.VersionRequest{})
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			d.log.Warn("watchdog: no answer from our own socket", "error", err)
		default:
			d.notify("WATCHDOG=1")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
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
