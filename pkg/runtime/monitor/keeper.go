package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// swapTime is how long calls wait for a next cri-monitor when one has died.
const swapTime = 30 * time.Second

// retrySwap is how long to wait between two tries to start one.
const retrySwap = 50 * time.Millisecond

// keeper holds, in the client's process, what goes on when cri-monitor dies: duplicates of the descriptors of each
// container, and a description of it. Because of the duplicates no writer gets EPIPE and no terminal hangs up. It
// starts the next cri-monitor, gives all that to it, and lets the client's calls wait meanwhile.
type keeper struct {
	client *Client
	cfg    LaunchConfig
	log    *slog.Logger
	cancel context.CancelFunc
	done   chan struct{}

	mu     sync.Mutex
	pid    int           // the cri-monitor that has everything; 0: not known
	line   *net.UnixConn // to it
	ready  chan struct{} // closed while it answers
	synced chan struct{} // closed while everything that it holds is kept here

	// What follows belongs to the keeper's goroutine.
	journal part
	parts   map[string]part
	told    map[string]bool // of which the present cri-monitor has told, until it has told of all; then nil
}

// Keep begins to keep what cri-monitor holds, until Close: it may die from now on. It returns when all is kept.
func (c *Client) Keep(ctx context.Context, cfg LaunchConfig, log *slog.Logger) error {
	own, cancel := context.WithCancel(context.Background())
	k := &keeper{client: c, cfg: cfg, log: log, cancel: cancel, done: make(chan struct{}), parts: map[string]part{}}
	k.ready, k.synced = make(chan struct{}), make(chan struct{})
	close(k.ready)
	c.mu.Lock()
	if c.keeper != nil || c.closed {
		c.mu.Unlock()
		cancel()
		return fmt.Errorf("cri-monitor is kept already, or the client is closed: %w", errdefs.ErrFailedPrecondition)
	}
	c.keeper = k
	c.mu.Unlock()
	synced := k.synced
	if uc, v, err := k.meet(ctx); err == nil {
		k.pid = v.Pid
		uc.Close()
	}
	go k.run(own)
	select {
	case <-synced:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("keep what cri-monitor holds: %w", ctx.Err())
	}
}

func (k *keeper) close() {
	k.cancel()
	<-k.done
}

// await returns when a cri-monitor answers that has everything.
func (k *keeper) await(ctx context.Context) error {
	k.mu.Lock()
	ready := k.ready
	k.mu.Unlock()
	select {
	case <-ready:
		return nil
	default:
	}
	timer := time.NewTimer(swapTime)
	defer timer.Stop()
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return fmt.Errorf("cri-monitor has died and does not come back: %w", errdefs.ErrUnavailable)
	case <-k.done:
		return fmt.Errorf("client is closed: %w", errdefs.ErrFailedPrecondition)
	}
}

// serves tells whether a connection goes to the cri-monitor that has everything. One to another makes calls wait.
func (k *keeper) serves(uc *net.UnixConn) bool {
	pid := peerPid(uc)
	k.mu.Lock()
	defer k.mu.Unlock()
	return pid == k.pid || k.pid == 0
}

// changing is called by who can't reach cri-monitor. It has the keeper find out why, and waits for that.
func (k *keeper) changing(ctx context.Context) error {
	k.mu.Lock()
	k.blockLocked()
	if k.line != nil {
		_ = k.line.CloseWrite() // what cri-monitor has said is still read, to the end
	}
	k.mu.Unlock()
	return k.await(ctx)
}

// setLine sets the connection that changing has ended.
func (k *keeper) setLine(uc *net.UnixConn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.line = uc
}

// block makes calls wait until release.
func (k *keeper) block() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.blockLocked()
}

func (k *keeper) blockLocked() {
	select {
	case <-k.ready:
		k.ready = make(chan struct{})
	default:
	}
}

func (k *keeper) release(pid int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pid = pid
	select {
	case <-k.ready:
	default:
		close(k.ready)
	}
}

func (k *keeper) run(ctx context.Context) {
	defer close(k.done)
	defer k.drop()
	for {
		err := k.hold(ctx)
		if ctx.Err() != nil {
			return
		}
		began := time.Now()
		k.block()
		k.log.Warn("cri-monitor is lost", "containers", len(k.parts), "err", err)
		for tries := 0; ; tries++ {
			var v Version
			if v, err = k.swap(ctx); err == nil {
				k.release(v.Pid)
				break
			}
			if ctx.Err() != nil {
				return
			}
			k.log.Error("next cri-monitor", "try", tries, "err", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(retrySwap):
			}
		}
		k.log.Info("cri-monitor is back", "took", time.Since(began))
	}
}

// hold takes what cri-monitor gives until the connection ends.
func (k *keeper) hold(ctx context.Context) error {
	uc, err := k.client.connect(ctx)
	if err != nil {
		return err
	}
	defer uc.Close()
	k.setLine(uc)
	defer k.setLine(nil)
	stop := context.AfterFunc(ctx, func() { uc.Close() })
	defer stop()
	f, err := exchange(ctx, uc, kindKeep, nil)
	if err != nil {
		return err
	}
	f.closeFiles()
	k.told = map[string]bool{}
	for {
		f, err := readFDs(uc, nil)
		if err != nil {
			return lost(err)
		}
		err = k.take(f)
		f.closeFiles()
		if err != nil {
			return err
		}
	}
}

// take handles one message.
func (k *keeper) take(f *frame) error {
	v, err := f.kept()
	if err != nil || f.kind != kindKept {
		return fmt.Errorf("message of kind %d from cri-monitor: %w", f.kind, errors.Join(err, errdefs.ErrInternal))
	}
	switch {
	case v.Synced:
		for id, p := range k.parts { // gone since another connection told of them
			if !k.told[id] {
				closeFDs(p.fds)
				delete(k.parts, id)
			}
		}
		k.told = nil
		k.mu.Lock()
		defer k.mu.Unlock()
		select {
		case <-k.synced:
		default:
			close(k.synced)
		}
		return nil
	case v.Forget:
		closeFDs(k.parts[v.ID].fds)
		delete(k.parts, v.ID)
		return nil
	case v.Still:
		if k.told != nil {
			k.told[v.ID] = true
		}
		return nil
	}
	p, err := f.part(v)
	if err != nil {
		return err
	}
	if v.Journal {
		closeFDs(k.journal.fds)
		k.journal = p
		return nil
	}
	closeFDs(k.parts[v.ID].fds)
	if k.cfg.Packer != nil && len(p.Data) > 0 {
		p.Data, p.packed = k.cfg.Packer.Pack(p.Data)
	}
	k.parts[v.ID] = p
	if k.told != nil {
		k.told[v.ID] = true
	}
	return nil
}

func (k *keeper) drop() {
	for _, p := range k.parts {
		closeFDs(p.fds)
	}
	closeFDs(k.journal.fds)
	k.parts, k.journal = nil, part{}
}

// swap finds or starts the next cri-monitor and gives it what is kept. What the service manager has given it already it
// keeps.
func (k *keeper) swap(ctx context.Context) (Version, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if err := launch(ctx, k.cfg); err != nil {
		return Version{}, err
	}
	uc, v, err := k.meet(ctx)
	if err != nil {
		return v, err
	}
	defer uc.Close()
	if v.Pid == k.pid {
		return v, nil // only our connection was lost
	}
	send := func(p part) error {
		if p.packed {
			if p.Data, err = k.cfg.Packer.Unpack(p.Data); err != nil {
				return fmt.Errorf("what is kept of container %s: %w", p.ID, err)
			}
		}
		return sendFrame(uc, kindRestore, 1, p.kept, frameTime, p.fds)
	}
	if k.journal.fds != nil {
		err = send(k.journal)
	}
	for _, p := range k.parts {
		if err == nil {
			err = send(p)
		}
	}
	if err != nil {
		return v, lost(err)
	}
	var answer restored
	if err := roundTrip(ctx, uc, kindRestore, kept{Synced: true}, &answer); err != nil {
		return v, err
	}
	for id, why := range answer.Failed {
		k.log.Error("container was not taken back", "container", id, "err", why)
	}
	return v, nil
}

// meet connects to the cri-monitor that answers now. Pid is as this process sees it.
func (k *keeper) meet(ctx context.Context) (uc *net.UnixConn, v Version, err error) {
	if uc, err = k.client.connect(ctx); err != nil {
		return nil, v, err
	}
	if err = roundTrip(ctx, uc, kindVersion, nil, &v); err != nil {
		uc.Close()
		return nil, v, err
	}
	v.Pid = peerPid(uc)
	return uc, v, nil
}

// peerPid is the process that a connection goes to, 0 if that can't be known.
func peerPid(uc *net.UnixConn) int {
	raw, err := uc.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}
