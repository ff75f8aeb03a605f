package native

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// maxIdle is how many threads wait for containers to be built.
const maxIdle = 2

// threads are OS threads that containers are built on, one after the other: to make a thread, and its stack, takes a
// fair share of the time that a container takes. A thread that is not what it was before is thrown away.
type threads struct {
	// spare, unless it is nil, is called on a thread that has become idle, and again when the time that it returns has
	// passed without another job; never if that is negative. It leaves the thread as it is. none is called when the last of
	// the idle threads has got a job that it did not survive.
	spare func() time.Duration
	none  func()

	mu     sync.Mutex
	idle   []*worker
	closed bool
	all    sync.WaitGroup
}

// worker is one of the threads.
type worker struct {
	bell bell
	job  atomic.Pointer[job]
	end  atomic.Bool
}

// job is what a thread is to do. The thread may be used again if clean returns true. Who waits for f goes on when it has
// succeeded, or when clean has returned.
type job struct {
	f     func() error
	clean func() bool
	done  bell
	err   error
}

// wait waits for the result. It is for one caller, once.
func (j *job) wait() error {
	j.done.wait(-1)
	return j.err
}

// run runs f on a thread that it may change, and then clean, which is to undo that.
func (t *threads) run(f func() error, clean func() bool) error { return t.start(f, clean).wait() }

// start is run without waiting for the result.
func (t *threads) start(f func() error, clean func() bool) *job {
	j := &job{f: f, clean: clean}
	t.mu.Lock()
	n := len(t.idle) - 1
	if n < 0 || t.closed {
		t.all.Add(1)
		t.mu.Unlock()
		go t.work(j)
		return j
	}
	w := t.idle[n]
	t.idle = t.idle[:n]
	t.mu.Unlock()
	w.job.Store(j)
	w.bell.ring()
	return j
}

func (t *threads) work(j *job) {
	runtime.LockOSThread() // never unlocked
	if unix.Gettid() == unix.Getpid() {
		go t.work(j) // see onThread
		runtime.UnlockOSThread()
		return
	}
	defer t.all.Done()
	w := &worker{}
	for ; j != nil; j = t.rest(w) {
		err := j.f()
		if err == nil { // nobody needs to wait for the rest
			j.done.ring()
		}
		keep := j.clean() && t.keep(w)
		if err != nil {
			j.err = err
			j.done.ring()
		}
		if !keep {
			t.handOver()
			return
		}
	}
}

// rest waits for the next job; nil: there is none.
func (t *threads) rest(w *worker) *job {
	for {
		if j := w.job.Swap(nil); j != nil || w.end.Load() {
			return j
		}
		limit := time.Duration(-1)
		if t.spare != nil {
			limit = t.spare()
		}
		w.bell.wait(limit)
	}
}

// handOver leaves what an idle thread has to do to another one.
func (t *threads) handOver() {
	t.mu.Lock()
	n := len(t.idle)
	if n > 0 {
		t.idle[n-1].bell.ring()
	}
	t.mu.Unlock()
	if n == 0 && t.none != nil {
		t.none()
	}
}

// keep puts a thread among the idle ones, unless there are enough.
func (t *threads) keep(w *worker) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || len(t.idle) == maxIdle {
		return false
	}
	t.idle = append(t.idle, w)
	return true
}

// close ends the idle threads, and those at work when they are done.
func (t *threads) close() {
	t.mu.Lock()
	t.closed = true
	for _, w := range t.idle {
		w.end.Store(true)
		w.bell.ring()
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
