package native

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// onThread runs f on an OS thread of its own that ends with f, so that f may change the thread's namespaces, root
// directory, umask and credentials. A throw-away thread costs about 0.03 ms.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		if unix.Gettid() != unix.Getpid() {
			done <- f()
			return
		}
		// The main thread does not end with a goroutine: it would keep the namespaces for good, and show them as the
		// process's in /proc. As long as it is held here, the next goroutine gets another.
		defer runtime.UnlockOSThread()
		done <- onThread(f)
	}()
	return <-done
}

// elsewhere runs f on a thread whose namespaces nobody has changed, and waits for it.
func elsewhere(f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return <-done
}
