// Package clock keeps times in order when the machine's clock was set back. kubelet takes the newest of a pod's sandboxes,
// and of a container's attempts, for the one that counts, and tells how long something ran by its times; none of these
// may depend on what somebody does to the clock in between. Durations and deadlines need nothing of this: Go measures
// them by the kernel's monotonic clock.
package clock

import "time"

// After is now, or 1 ns after the latest of others if that is not before it. Only wall times count: others may be from
// before a restart.
func After(now time.Time, others ...time.Time) time.Time {
	now = now.Round(0)
	for _, t := range others {
		if t = t.Round(0); !now.After(t) {
			now = t.Add(1)
		}
	}
	return now
}

// NotBefore is t, or earliest if t is before that.
func NotBefore(t, earliest time.Time) time.Time {
	if t, earliest = t.Round(0), earliest.Round(0); t.Before(earliest) {
		return earliest
	}
	return t
}
