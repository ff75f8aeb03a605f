package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

// container is a container of this engine.
type container struct {
	engine *Engine
	id     string
	dir    string
	spec   *specs.Spec // what remains of it, see kept
	cgroup engine.PackedCgroup
	joins  uintptr // CLONE_NEW* of the namespaces that are not the host's
	ids    idMap   // of its user namespace
	init   *process

	forgotten bool // by engine.tasks, which guards it

	mu      sync.Mutex
	pending *pending // until Start
	execs   []*process
	deleted bool
}

// pending is what a container needs only to start.
type pending struct {
	stub *stub
	name string // of the program
	// spec and filter are for startContainer hooks, and else nil.
	spec   *specs.Spec
	filter []byte
	// unprepared: the stub was forked by an engine that did not prepare stubs, and needs spec and filter. top: the root lies
	// over that of the stub, see builder.nested.
	unprepared, top bool
	failed          error // what the stub could not prepare
}

func (b *builder) pending() *pending {
	p := &pending{stub: b.stub, name: b.spec.Process.Args[0]}
	if len(hooks(b.spec).StartContainer) > 0 {
		p.spec, p.filter = b.spec, b.config.Seccomp
	}
	return p
}

// kept is the part of a spec that a running container needs, for sessions and hooks. The rest, with its environment and
// a seccomp profile of some ten thousand bytes, need not stay in memory for every container.
func kept(s *specs.Spec) *specs.Spec {
	p := *s.Process
	p.Args, p.Env = nil, nil
	l := &specs.Linux{Personality: s.Linux.Personality, MemoryPolicy: s.Linux.MemoryPolicy}
	if s.Linux.Seccomp != nil {
		l.Seccomp = &specs.LinuxSeccomp{Flags: s.Linux.Seccomp.Flags}
	}
	k := &specs.Spec{Process: &p, Linux: l}
	if hasHooks(s) { // who are told the annotations
		k.Hooks, k.Annotations = s.Hooks, s.Annotations
	}
	return k
}

// process is a process of a container. Its pidfd is closed by the container.
type process struct {
	child    *reaper.Child
	terminal *os.File
	mu       sync.Mutex
	pidfd    int // -1 when closed
}

func (p *process) Pid() int             { return p.child.Pid() }
func (p *process) Child() *reaper.Child { return p.child }
func (p *process) Terminal() *os.File   { return p.terminal }

func (p *process) Signal(sig unix.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := unix.ESRCH
	if p.pidfd >= 0 {
		err, _ = unix.PidfdSendSignal(p.pidfd, sig, nil, 0).(unix.Errno)
	}
	switch err {
	case 0:
		return nil
	case unix.ESRCH:
		return fmt.Errorf("process %d has ended: %w", p.Pid(), errdefs.ErrNotFound)
	case unix.EINVAL:
		return invalid("signal %d", int(sig))
	}
	return fmt.Errorf("signal process %d: %w", p.Pid(), err)
}

func (p *process) ended() bool {
	select {
	case <-p.child.Done():
		return true
	default:
		return false
	}
}

// dead is like ended, but also true for a process that is not reaped yet, or ends within grace.
func (p *process) dead(grace time.Duration) bool {
	fd, err := p.dup()
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	return reaper.EndsIn(fd, grace)
}

// endTimeout bounds the wait for the end of a process that has got SIGKILL, in case the kernel can't let it go.
const endTimeout = 10 * time.Second

func awaitEnd(child *reaper.Child) {
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	_, _ = child.Wait(ctx)
}

func (p *process) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	closeFD(p.pidfd)
	p.pidfd = -1
}

// Create implements engine.Engine.
func (e *Engine) Create(ctx context.Context, config *engine.Config) (engine.Container, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	spec, id, err := check(config)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", config.ID, err)
	}
	ns, err := openNamespaces(spec.Linux.Namespaces)
	if err != nil {
		return nil, err
	}
	defer ns.close()
	if err := checkNamespaces(spec, ns); err != nil {
		return nil, err
	}
	if err := makeBundle(config.Dir, spec); err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	b := &builder{ctx: ctx, engine: e, config: config, spec: spec, id: id, ns: ns, root: -1, nullClone: -1, emptyClone: -1}
	building := e.threads.start(b.build, b.leave)
	b.places = b.openPlace()
	b.brought.ring()
	err = building.wait()
	if err == nil {
		err = b.finish()
	}
	b.places.close()
	if b.release != nil {
		b.release()
	}
	if err == nil { // its end has cut the stub's socket, perhaps after all answers were there
		err = ctx.Err()
	}
	if err != nil {
		if b.stub != nil {
			b.stub.kill()
		}
		if b.terminal != nil {
			b.terminal.Close()
		}
		return nil, errors.Join(fmt.Errorf("create container %s: %w", config.ID, orContext(ctx, err)), removeBundle(config.Dir, spec))
	}
	return &container{engine: e, id: config.ID, dir: config.Dir, spec: e.kept.share(kept(spec)), cgroup: config.Cgroup.Pack(), joins: ns.all(),
		ids: b.ids, pending: b.pending(),
		init: &process{child: b.stub.child, pidfd: b.stub.pidfd, terminal: b.terminal}}, nil
}

// orContext puts ctx's error in front of one that its end has caused.
func orContext(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return err
}

// Process implements engine.Container.
func (c *container) Process() engine.Process { return c.init }

// Start implements engine.Container.
func (c *container) Start(ctx context.Context) error {
	c.mu.Lock()
	p := c.pending
	c.pending = nil
	c.mu.Unlock()
	if p == nil {
		return fmt.Errorf("container %s was started before: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	err := c.start(ctx, p)
	p.stub.conn.close()
	if err == nil {
		err = c.hostHooks(ctx, "poststart", specs.StateRunning, hooks(c.spec).Poststart)
	}
	if err == nil {
		return nil
	}
	_ = c.Kill(context.WithoutCancel(ctx))
	awaitEnd(c.init.child)
	return fmt.Errorf("start container %s: %w", c.id, orContext(ctx, err))
}

func (c *container) start(ctx context.Context, p *pending) error {
	if err := c.startHooks(ctx, p); err != nil {
		return err
	}
	if p.failed != nil {
		return p.failed
	}
	s := p.stub
	defer s.guard(ctx)()
	if err := s.limit(c.spec.Process); err != nil {
		return err
	}
	run := func() error { return s.run(p.name) }
	if p.unprepared {
		run = func() error { return c.prepareAndRun(p) }
	}
	if err := run(); err != nil {
		return err
	}
	return ctx.Err() // its end also closes the socket, which looks like success
}

func (c *container) prepareAndRun(p *pending) error {
	id, err := newIdentity(p.spec.Process, p.filter, p.spec.Linux.Seccomp)
	if err != nil {
		return err
	}
	if p.top {
		id.flags |= flagTop
	}
	id.hostname, id.domainname = p.spec.Hostname, p.spec.Domainname
	if err := id.common(c.id, c.spec.Linux); err != nil {
		return err
	}
	return p.stub.become(id)
}

// common adds what all processes of a container share but their own spec doesn't say.
func (id *identity) common(container string, l *specs.Linux) error {
	id.keyring = "_ses." + container
	if p := l.Personality; p != nil {
		id.flags |= flagPersonality
		id.personality = personalities[p.Domain]
	}
	return id.policy(l.MemoryPolicy)
}

// Delete implements engine.Container.
func (c *container) Delete(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deleted {
		return nil
	}
	if !c.init.ended() {
		return fmt.Errorf("delete container %s: process %d still lives: %w", c.id, c.init.Pid(), errdefs.ErrFailedPrecondition)
	}
	c.deleted = true
	if c.pending != nil {
		c.pending.stub.conn.close()
		c.pending = nil
	}
	c.init.close()
	c.engine.tasks.forget(c)
	for _, p := range c.execs {
		p.close()
	}
	c.execs = nil
	c.poststop(ctx)
	return removeBundle(c.dir, c.spec)
}
