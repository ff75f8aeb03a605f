package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

// process is one process that a runtime left to us.
type process struct {
	pid      int
	child    *reaper.Child
	terminal *os.File

	mu    sync.RWMutex // over pidfd: a signal must not meet a closed or reused fd
	pidfd int          // -1 once closed
}

// adopt takes over an orphan of the runtime. It may have ended already.
func adopt(r *reaper.Reaper, pid int) (*process, error) {
	// Before Adopt: as long as the child isn't reaped, pid and pidfd are the same process.
	fd, err := unix.PidfdOpen(pid, 0) // Linux 5.3
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("pidfd_open: %w", err)
	}
	if err != nil {
		return adoptDead(r, pid)
	}
	ours := orphan(pid)
	child := r.Adopt(pid)
	p := &process{pid: pid, child: child, pidfd: fd}
	switch {
	case p.ended():
		// An earlier orphan that nobody asked for may have had this pid, and its exit was remembered under it.
		// Ours is alive then, and the second Adopt waits for it.
		if ours && alive(fd) {
			p.child = r.Adopt(pid)
		}
	case !ours && alive(fd):
		p.close()
		return nil, fmt.Errorf("it is not this process's child: the runtime must leave it to the child subreaper")
	}
	return p, nil
}

// adoptDead takes over an orphan that was reaped already.
func adoptDead(r *reaper.Reaper, pid int) (*process, error) {
	p := &process{pid: pid, child: r.Adopt(pid), pidfd: -1}
	ctx, cancel := context.WithTimeout(context.Background(), lostTimeout)
	defer cancel()
	if _, err := p.child.Wait(ctx); err != nil { // the Reaper may be just about to tell
		return nil, fmt.Errorf("its end is unknown: the runtime has waited for it")
	}
	return p, nil
}

// alive reports that the process has not ended.
func alive(pidfd int) bool { return !reaper.EndsIn(pidfd, 0) }

// orphan reports that pid's parent is this process.
func orphan(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	return strings.Contains(string(b), fmt.Sprintf("\nPPid:\t%d\n", os.Getpid()))
}

// Pid in this process's pid namespace.
func (p *process) Pid() int { return p.pid }

// Child tells how the process ended.
func (p *process) Child() *reaper.Child { return p.child }

// Terminal is the pty master, nil without one.
func (p *process) Terminal() *os.File { return p.terminal }

// Signal sends sig through the pidfd.
func (p *process) Signal(sig unix.Signal) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.pidfd >= 0 && !p.ended() {
		err := unix.PidfdSendSignal(p.pidfd, sig, nil, 0) // Linux 5.1
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("signal %s to process %d: %w", unix.SignalName(sig), p.pid, err)
		}
	}
	return fmt.Errorf("process %d has ended: %w", p.pid, errdefs.ErrNotFound)
}

func (p *process) ended() bool {
	select {
	case <-p.child.Done():
		return true
	default:
		return false
	}
}

// endsIn reports that the process has ended, or does so within grace, reaped or not.
func (p *process) endsIn(grace time.Duration) bool {
	p.mu.RLock()
	fd, err := unix.FcntlInt(uintptr(p.pidfd), unix.F_DUPFD_CLOEXEC, 3)
	p.mu.RUnlock()
	if err != nil { // EBADF: it was closed when the process ended
		return p.ended() || errors.Is(err, unix.EBADF)
	}
	defer unix.Close(fd)
	return reaper.EndsIn(fd, grace)
}

// kill ends the process and gives it up.
func (p *process) kill() {
	_ = p.Signal(unix.SIGKILL)
	p.close()
}

func (p *process) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd >= 0 {
		unix.Close(p.pidfd)
		p.pidfd = -1
	}
}

// wait returns once the process, which was sent SIGKILL, is reaped.
func (p *process) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, deathTimeout)
	defer cancel()
	_, err := p.child.Wait(ctx)
	return err
}
