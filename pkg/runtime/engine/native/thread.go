package native

import (
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// maxIdle is how many threads wait for containers to be built.
const maxIdle = 2

// threads are OS threads that containers are built on, one after the other: to make a thread, and its stack, takes a
// fair share of the time that a container takes. A thread that is not what it was before is thrown away.
type threads struct {
	mu     sync.Mutex
	idle   []chan job
	closed bool
	all    sync.WaitGroup
}

// job is what a thread is to do. The thread may be used again if clean returns true. Who waits for f goes on when it has
// succeeded, or when clean has returned.
type job struct {
	f     func() error
	clean func() bool
	done  chan error
}

// run runs f on a thread that it may change, and then clean, which is to undo that.
func (t *threads) run(f func() error, clean func() bool) error { return <-t.start(f, clean) }

// start is run without waiting for the result.
func (t *threads) start(f func() error, clean func() bool) (done <-chan error) {
	j := job{f, clean, make(chan error, 1)}
	t.mu.Lock()
	n := len(t.idle) - 1
	if n < 0 || t.closed {
		t.all.Add(1)
		t.mu.Unlock()
		go t.work(j)
		return j.done
	}
	jobs := t.idle[n]
	t.idle = t.idle[:n]
	t.mu.Unlock()
	jobs <- j
	return j.done
}

func (t *threads) work(j job) {
	runtime.LockOSThread() // never unlocked
	if unix.Gettid() == unix.Getpid() {
		go t.work(j) // see onThread
		runtime.UnlockOSThread()
		return
	}
	defer t.all.Done()
	jobs := make(chan job)
	for ok := true; ok; j, ok = <-jobs {
		err := j.f()
		if err == nil { // nobody needs to wait for the rest
			j.done <- nil
		}
		keep := j.clean() && t.keep(jobs)
		if err != nil {
			j.done <- err
		}
		if !keep {
			return
		}
	}
}

// keep puts a thread among the idle ones, unless there are enough.
func (t *threads) keep(jobs chan job) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || len(t.idle) == maxIdle {
		return false
	}
	t.idle = append(t.idle, jobs)
	return true
}

// close ends the idle threads, and those at work when they are done.
func (t *threads) close() {
	t.mu.Lock()
	t.closed = true
	for _, jobs := range t.idle {
		close(jobs)
	}
	t.idle = nil
	t.mu.Unlock()
	t.all.Wait()
}

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
