// Package reaper waits for all children of this process in one place.
//
// cri-monitor is parent and child subreaper of every pod process, so any pid may turn up in wait(2): children it
// forked, children it inherited from an OCI runtime that has exited, and strangers orphaned in a pid namespace that it
// shares. One Reaper per process collects them all; nothing else in the process may call wait (os/exec included:
// use Fork). Command runs a program to its end that way.
//
// One thread does nothing but wait(2) for whatever ends next, so that the kernel wakes just that one. SIGCHLD, which a thread
// would have to be interrupted for, is not asked for: the kernel gives it to the thread that has forked the child, and while that
// one is in a system call that can't be interrupted, nobody hears of it.
//
// Attend takes over processes of a predecessor, whose parent may be another: the kernel tells through a pidfd how
// those ended.
package reaper

import (
	"context"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxUnclaimed bounds how many exits of unknown pids are remembered for a later Adopt.
const maxUnclaimed = 4096

// Status is how a process ended.
type Status struct {
	unix.WaitStatus
	// Unknown: the process was no child of ours and the kernel does not tell how it ended; see Attend.
	Unknown bool
}

// UnknownCode is the exit code of a process whose end nobody saw; the CRI's convention.
const UnknownCode = 255

// Code is the exit code as a shell and the CRI count it: 128+n for a death by signal n; UnknownCode if it is not known.
func (s Status) Code() int {
	if s.Unknown {
		return UnknownCode
	}
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

// Child is one process that the Reaper waits for.
type Child struct {
	pid    int
	done   chan struct{}
	status Status

	mu    sync.Mutex
	after []func(Status) // nil once done is closed
}

// Pid of the child. It can't be reused before Done is closed.
func (c *Child) Pid() int { return c.pid }

// Done is closed when the child was reaped.
func (c *Child) Done() <-chan struct{} { return c.done }

// Wait returns the status once the child was reaped, or ctx's error.
func (c *Child) Wait(ctx context.Context) (Status, error) {
	select {
	case <-c.done:
		return c.status, nil
	case <-ctx.Done():
		select {
		case <-c.done:
			return c.status, nil
		default:
			return Status{}, ctx.Err()
		}
	}
}

// AfterExit calls f in a goroutine of its own once the child was reaped; at once if it already was. It lets one wait for
// thousands of children without a goroutine for each.
func (c *Child) AfterExit(f func(Status)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.done:
		go f(c.status)
	default:
		c.after = append(c.after, f)
	}
}

// finish publishes the status.
func (c *Child) finish(s Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status = s
	close(c.done)
	for _, f := range c.after {
		go f(s)
	}
	c.after = nil
}

// exit is the end of a process that nobody has asked for yet; seq orders exits.
type exit struct {
	status Status
	seq    uint64
}

// past names one entry of unclaimed; it is stale when the entry was claimed, or replaced by a later exit of the pid.
type past struct {
	pid int
	seq uint64
}

// Reaper reaps every child of the process. The zero value is not usable; see New.
type Reaper struct {
	mu        sync.Mutex
	children  map[int]*Child
	unclaimed map[int]exit
	order     []past // what was put into unclaimed, oldest first
	seq       uint64 // exits seen so far
	forgotten uint64 // the last of them that was dropped from unclaimed

	reaping sync.Mutex // held from wait(2) to settle; comes before mu

	run    sync.Mutex
	paused chan struct{} // closed by Resume; nil while reaping. Guarded by reaping
	closed chan struct{}
	born   chan struct{} // a child was registered: there may have been none before
	far    watcher
}

// New starts reaping. There must be one Reaper per process; Close ends it.
func New() *Reaper {
	r := &Reaper{children: map[int]*Child{}, unclaimed: map[int]exit{}, closed: make(chan struct{}), born: make(chan struct{}, 1)}
	noSignal()
	go r.loop() // ends with the first end of a child after Close; wait(2) can't be called off
	return r
}

// noSignal gives SIGCHLD its default again, which is that the kernel drops it. Go's runtime has a handler for every signal, asked
// for or not, and would let a thread be woken for nothing at each end of a child.
func noSignal() {
	var dfl struct{ handler, flags, restorer, mask uint64 } // struct kernel_sigaction of 64-bit machines: SIG_DFL
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGCHLD), uintptr(unsafe.Pointer(&dfl)), 0, 8, 0, 0)
}

// Resume starts reaping again, after Pause.
func (r *Reaper) Resume() {
	r.run.Lock()
	defer r.run.Unlock()
	r.reaping.Lock()
	defer r.reaping.Unlock()
	if r.paused != nil {
		close(r.paused)
		r.paused = nil
	}
}

// Pause stops reaping: when it has returned, children that end stay zombies, to be reaped after Resume or by the
// program that takes this one's place by execve(2).
func (r *Reaper) Pause() {
	r.run.Lock()
	defer r.run.Unlock()
	r.reaping.Lock()
	defer r.reaping.Unlock()
	if r.paused == nil {
		r.paused = make(chan struct{})
	}
}

// Close stops reaping; children still alive are no longer waited for.
func (r *Reaper) Close() {
	r.Pause()
	r.run.Lock()
	defer r.run.Unlock()
	select {
	case <-r.closed:
	default:
		close(r.closed)
		r.far.close()
	}
}

// Fork calls fork, which starts a child process and returns its pid, and registers the child. Forks run in parallel
// with each other and with reaping: a child that ends before its pid is known here is found among the unclaimed exits
// that came after the fork began (a pid can't come round again in that time).
func (r *Reaper) Fork(fork func() (pid int, err error)) (*Child, error) {
	forked := r.Expect()
	pid, err := fork()
	if err != nil {
		return nil, err
	}
	return forked(pid), nil
}

// Expect is the beginning of a Fork whose pid becomes known later: then forked registers the child.
func (r *Reaper) Expect() (forked func(pid int) *Child) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.seq
	return func(pid int) *Child {
		c := r.register(pid, before)
		r.verify(c, before)
		return c
	}
}

// Adopt registers a process that became our child without Fork: forked with CLONE_PARENT by a child, or orphaned to us
// as subreaper. If it has ended already, its status is there at once.
func (r *Reaper) Adopt(pid int) *Child { return r.register(pid, 0) }

// register returns the child for pid; an unclaimed exit counts if it came after the first `since` ones.
func (r *Reaper) register(pid int, since uint64) *Child {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.children[pid]; c != nil {
		return c
	}
	c := &Child{pid: pid, done: make(chan struct{})}
	e, ok := r.unclaimed[pid]
	delete(r.unclaimed, pid)
	if ok && e.seq > since {
		c.finish(e.status)
		return c
	}
	r.children[pid] = c
	select {
	case r.born <- struct{}{}:
	default:
	}
	return c
}

// verify ends a child that was born after the first `since` exits, if its own exit is among those that were dropped since.
func (r *Reaper) verify(c *Child, since uint64) {
	r.mu.Lock()
	dropped := r.forgotten > since && r.children[c.pid] == c
	r.mu.Unlock()
	if !dropped {
		return
	}
	r.reaping.Lock() // what is no child any more was settled
	defer r.reaping.Unlock()
	if unix.Waitid(unix.P_PID, c.pid, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT|unix.WALL, nil) != unix.ECHILD {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.children[c.pid] == c {
		delete(r.children, c.pid)
		c.finish(Status{Unknown: true})
	}
}

func (r *Reaper) loop() {
	for {
		switch paused := r.reap(); {
		case paused != nil:
			select {
			case <-paused:
			case <-r.closed:
				return
			}
			continue
		default:
			// Who waits for what was reaped goes first, on this very thread: the next wait may be long, and until Go's runtime
			// sees that, nobody else takes over what has become ready here.
			runtime.Gosched()
		}
		// It only looks: who may reap is decided by reap.
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT|unix.WALL, nil)
		if err != nil && err != unix.EINTR { // ECHILD: there is none
			select {
			case <-r.born:
			case <-r.closed:
				return
			}
		}
	}
}

// reap collects every zombie there is now, unless the Reaper is paused.
func (r *Reaper) reap() (paused <-chan struct{}) {
	r.reaping.Lock()
	defer r.reaping.Unlock()
	for r.paused == nil {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG|unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return nil
		}
		r.settle(pid, Status{WaitStatus: ws})
	}
	return r.paused
}

func (r *Reaper) settle(pid int, s Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq++
	if c := r.children[pid]; c != nil {
		delete(r.children, pid)
		c.finish(s)
		return
	}
	if len(r.order) >= maxUnclaimed {
		if old := r.order[0]; r.unclaimed[old.pid].seq == old.seq {
			delete(r.unclaimed, old.pid)
			r.forgotten = old.seq
		}
		r.order = r.order[1:]
	}
	r.unclaimed[pid] = exit{s, r.seq}
	r.order = append(r.order, past{pid, r.seq})
}
