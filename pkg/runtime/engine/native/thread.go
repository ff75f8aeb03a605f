package native

import "runtime"

// onThread runs f on an OS thread of its own that ends with f, so that f may change the thread's namespaces, root
// directory, umask and credentials. A throw-away thread costs about 0.03 ms.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		done <- f()
	}()
	return <-done
}

// elsewhere runs f on a thread whose namespaces nobody has changed, and waits for it.
func elsewhere(f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return <-done
}
