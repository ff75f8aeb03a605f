package main

import (
	"log/slog"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// sdNotify tells systemd what goes on (sd_notify(3)); without it nothing happens.
func sdNotify(log *slog.Logger) func(string) {
	return func(state string) {
		if _, err := systemd.SdNotify(false, state); err != nil {
			log.Warn("systemd is not notified", "error", err)
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
