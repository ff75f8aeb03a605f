package native

import (
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// The main thread can't be thrown away: it lives as long as the process, and its namespaces are what /proc/PID shows.
func TestOnThreadSparesMainThread(t *testing.T) {
	const rounds, parallel = 200, 32
	for range rounds {
		var wg sync.WaitGroup
		for range parallel {
			wg.Go(func() {
				_ = onThread(func() error {
					if unix.Gettid() == unix.Getpid() {
						t.Error("on the main thread")
					}
					return nil
				})
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
	}
}
