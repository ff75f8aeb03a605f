package native

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// place is a container's cgroup, open for the stub to join and for a cgroup mount. It is made, by Create's goroutine, while
// the builder is at work: in the engine's mount namespace, which the builder leaves.
type place struct {
	err    error       // why there is none
	files  []int       // `tasks` of the v1 hierarchies
	dirs   []string    // whose they are
	clones []cgroupDir // for a cgroup mount
	// identity is what the stub is to become, as it reads it. It is made here since this goroutine has the time.
	identity []byte
}

// openPlace finishes the cgroup and opens it. The builder closes it.
func (b *builder) openPlace() *place {
	c := b.config
	p := &place{}
	if b.id.flags&flagSeccomp != 0 && early(b.id.seccomp) {
		b.id.flags |= flagEarly
	}
	if b.nested() {
		b.id.flags |= flagTop
	}
	p.identity = b.id.payload()
	if c.FinishCgroup != nil {
		if p.err = c.FinishCgroup(b.ctx); p.err != nil {
			return p
		}
	}
	if c.Cgroup == nil {
		return p
	}
	if p.files, p.dirs, p.err = openTasks(c.Cgroup); p.err == nil {
		p.err = p.clone(c.Cgroup, b.spec)
	}
	return p
}

func (p *place) close() {
	for _, fd := range p.files {
		closeFD(fd)
	}
	for _, c := range p.clones {
		closeFD(c.fd)
	}
	p.files, p.clones = nil, nil
}

// clone makes clones of the cgroup's directories for a cgroup mount where there are v1 hierarchies; the mount then shows
// the container its own directories only, with and without a cgroup namespace.
func (p *place) clone(cg *engine.Cgroup, spec *specs.Spec) error {
	cg = cg.Own()
	if len(cg.V1) == 0 || !slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool { return m.Type == "cgroup" }) {
		return nil
	}
	dirs := map[string]string{}
	for name, dir := range cg.V1 {
		dirs[strings.TrimPrefix(name, "name=")] = dir
	}
	if cg.Unified != "" {
		dirs["unified"] = cg.Unified
	}
	for name, dir := range dirs {
		if name == "" || strings.ContainsAny(name, "/\x00") {
			return invalid("cgroup hierarchy %q", name)
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("cgroup %s: %w", dir, classify(err))
		}
		p.clones = append(p.clones, cgroupDir{name, fd})
	}
	sort.Slice(p.clones, func(i, j int) bool { return p.clones[i].name < p.clones[j].name })
	return nil
}

// awaitPlace waits for the cgroup, which its maker gives in any case.
func (b *builder) awaitPlace() error {
	if b.place == nil {
		b.brought.wait(-1)
		b.place = b.places
	}
	return b.place.err
}

// arrived tells whether the cgroup is ready.
func (b *builder) arrived() bool {
	if b.place == nil && b.brought.heard() {
		b.place = b.places
	}
	return b.place != nil
}

// join lets the stub join its v1 cgroups and then make its cgroup namespace. Without wait it does so only if the cgroup is
// ready.
func (b *builder) join(wait bool) error {
	cg := b.config.Cgroup
	if b.joined || cg == nil || len(cg.V1) == 0 {
		return nil
	}
	if !wait && !b.arrived() {
		return nil
	}
	if err := b.awaitPlace(); err != nil {
		return err
	}
	b.joined = true
	unshare := uint64(b.ns.made & unix.CLONE_NEWCGROUP)
	if b.twoStep() { // it must belong to the user namespace
		unshare = 0
	}
	return b.stub.ask(func(at int, err error) error {
		if failed := (*stubError)(nil); errors.As(err, &failed) {
			if at < len(b.place.dirs) {
				return fmt.Errorf("join cgroup %s: %w", b.place.dirs[at], err)
			}
			return fmt.Errorf("new namespaces: %w", err)
		}
		return err
	}, opJoin, unshare, nil, b.place.files...)
}

// finish does the rest, on whichever thread comes last.
func (b *builder) finish() error {
	if b.finished {
		return nil
	}
	b.finished = true
	if err := b.prepare(); err != nil {
		return err
	}
	return b.placed()
}

// placed waits until the stub is in its cgroup and namespaces. That it is prepared need not be waited for: Start, or Save,
// learns of it.
func (b *builder) placed() error {
	if err := b.join(true); err != nil {
		return err
	}
	return b.stub.settledBut(1)
}

// settled waits until the stub is in its cgroup and namespaces.
func (b *builder) settled() error {
	if err := b.join(true); err != nil {
		return err
	}
	return b.stub.settled()
}

// advance lets the stub do by itself what it can while the builder is at work: join its cgroup, and take on its identity.
func (b *builder) advance() error {
	if err := b.join(false); err != nil {
		return err
	}
	if !b.rooted || !b.joined && !b.early() || b.needed() || !b.arrived() {
		return nil
	}
	return b.prepare()
}

// needed tells whether the stub may get further orders while the container is built, which its filter could forbid.
func (b *builder) needed() bool {
	return b.twoStep() || hasHooks(b.spec) || b.spec.Process.Terminal || b.engine.stubProc.Load() || !b.engine.procByNS.Load()
}

// prepare gives the stub its identity, in its cgroup: the filter may forbid what it has to do there.
func (b *builder) prepare() error {
	if b.prepared {
		return nil
	}
	if err := b.join(true); err != nil {
		return err
	}
	if err := b.awaitPlace(); err != nil {
		return err
	}
	b.prepared = true
	heard := func(at int, err error) error { return stepError(at, err, b.spec.Process.Args[0]) }
	return classify(b.stub.ask(heard, opPrepare, 0, b.place.identity, b.id.files(b.engine)...))
}

// early tells whether the stub must be in its cgroup before the builder enters its namespaces: for a cgroup2 mount, which
// shows what the cgroup namespace has for a root; for hooks, whose processes join the cgroup too; in two steps, see spawn.
func (b *builder) early() bool {
	cg := b.config.Cgroup
	return cg == nil || len(cg.V1) == 0 || b.twoStep() || hasHooks(b.spec) ||
		slices.ContainsFunc(b.mounts, func(m *mountPoint) bool { return m.Type == "cgroup2" })
}
