package native

import (
	"errors"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// recipe tells what of a container can be made before anybody asks for it: what is the same for all containers of its
// kind, and holds nothing of the host's. Containers with equal keys have equal recipes.
type recipe struct {
	key string
	// stub: its process too, in the new namespaces made. Where there is a cgroup2 directory a process is forked into that.
	stub    bool
	made    uintptr
	label   string
	mounts  []specs.Mount
	devices bool // the default ones are in /dev
	// masked and readOnly are paths in proc.
	masked, readOnly []string
	used             time.Time // the last time; the stock's
}

// standard are the file systems that may be in a recipe, by destination.
var standard = map[string]string{"/proc": "proc", "/dev": "tmpfs", "/dev/pts": "devpts", "/dev/mqueue": "mqueue", "/dev/shm": "tmpfs",
	"/sys": "sysfs"}

// newRecipe returns b's recipe; nil if nothing of it can be made ahead.
func newRecipe(b *builder) *recipe {
	if !b.nested() || b.twoStep() {
		return nil
	}
	r := &recipe{label: b.spec.Linux.MountLabel}
	cg := b.config.Cgroup
	// A new uts namespace has the names that the host's has at that time.
	if cg != nil && len(cg.V1) > 0 && cg.Unified == "" && (b.ns.made&unix.CLONE_NEWUTS == 0 || b.spec.Hostname != "") {
		r.stub, r.made = true, b.ns.made&clonable
	}
	if !r.addMounts(b.spec.Mounts) {
		return nil
	}
	r.devices = r.has("/dev")
	for _, d := range b.spec.Linux.Devices {
		r.devices = r.devices && !atDefault(d.Path)
	}
	for _, m := range b.spec.Mounts {
		r.devices = r.devices && !atDefault(m.Destination)
	}
	if r.has("/proc") {
		r.masked, r.readOnly = inProc(b.spec.Linux.MaskedPaths), inProc(b.spec.Linux.ReadonlyPaths)
	}
	if !r.stub && len(r.mounts) == 0 {
		return nil
	}
	r.setKey()
	return r
}

// atDefault tells whether p is where every /dev has something.
func atDefault(p string) bool {
	name, ok := strings.CutPrefix(path.Clean("/"+p), "/dev/")
	name, _, _ = strings.Cut(name, "/")
	return ok && defaultNames[name]
}

// defaultNames are the names in every /dev.
var defaultNames = func() map[string]bool {
	names := map[string]bool{}
	for _, d := range defaultDevices {
		names[path.Base(d.Path)] = true
	}
	for _, l := range defaultLinks {
		names[l.name] = true
	}
	return names
}()

// addMounts takes what can be made ahead of the mounts that the list begins with. It is false if the order of the list
// may matter otherwise.
func (r *recipe) addMounts(list []specs.Mount) bool {
	seen := make(map[string]bool, len(list))
	begin := true
	for _, m := range list {
		dest := path.Clean("/" + m.Destination)
		if seen[dest] || slices.Contains(m.Options, "remount") { // of what was not masked yet
			return false
		}
		seen[dest] = true
		typ, ok := standard[dest]
		begin = begin && ok && typ == m.Type
		if begin && r.can(m) {
			m.Destination = dest
			r.mounts = append(r.mounts, m)
		}
	}
	return true
}

// can tells whether a mount can be made ahead: whether its namespace is there, and its options leave nothing for later.
func (r *recipe) can(m specs.Mount) bool {
	switch m.Type {
	case "proc":
		if !r.stub {
			return false
		}
	case "mqueue":
		if r.made&unix.CLONE_NEWIPC == 0 {
			return false
		}
	case "sysfs":
		if r.made&unix.CLONE_NEWNET == 0 {
			return false
		}
	}
	o, err := parseOptions(m.Type, m.Options)
	return err == nil && !o.bind && !o.remount && !o.copyUp && len(o.propagation) == 0 && o.recursive.empty() &&
		len(m.UIDMappings)+len(m.GIDMappings) == 0 && (m.Type != "tmpfs" || o.attrs.set&unix.MOUNT_ATTR_RDONLY == 0)
}

func (r *recipe) has(dest string) bool {
	for _, m := range r.mounts {
		if m.Destination == dest {
			return true
		}
	}
	return false
}

// inProc are those of paths that lead into proc and nowhere else.
func inProc(paths []string) (in []string) {
	for _, p := range paths {
		if strings.HasPrefix(p, "/proc/") && path.Clean(p) == p {
			in = append(in, p)
		}
	}
	return in
}

func (r *recipe) setKey() {
	b := make([]byte, 0, 1024)
	flag := func(v bool) {
		if v {
			b = append(b, 1)
		}
		b = append(b, 0)
	}
	text := func(vs ...string) {
		for _, v := range vs {
			b = append(append(b, v...), 0) // none of them has a NUL that the kernel would take
		}
		b = append(b, 0)
	}
	flag(r.stub)
	flag(r.devices)
	for v := r.made; v != 0; v >>= 8 {
		b = append(b, byte(v))
	}
	text("", r.label)
	for _, m := range r.mounts {
		text(m.Destination, m.Type, m.Source)
		text(m.Options...)
	}
	text("masked")
	text(r.masked...)
	text(r.readOnly...)
	r.key = string(b)
}

// kit is what a recipe says, made. A container takes all of it over.
type kit struct {
	stub    *stub
	mounts  map[string]int  // by destination: detached mounts; -1 for those that are part of one of the others
	dev     uint64          // the id of the mount that has the default devices; 0: there is none
	covered map[string]bool // masked and read-only paths that are so
	masking map[uint64]bool // the ids of the mounts on masked paths
}

// newKit makes a kit.
func (e *Engine) newKit(r *recipe) (_ *kit, err error) {
	k := &kit{mounts: map[string]int{}, covered: map[string]bool{}, masking: map[uint64]bool{}}
	defer func() {
		if err != nil {
			k.discard()
		}
	}()
	if r.stub {
		if k.stub, err = e.fork(launch{clone: r.made}); err != nil {
			return nil, err
		}
		if err = k.stub.settled(); err != nil {
			return nil, err
		}
	}
	return k, onThread(func() error { return k.fill(e, r) })
}

// fill makes the mounts, on a thread of its own.
func (k *kit) fill(e *Engine, r *recipe) (err error) {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	unix.Umask(0)
	if own := r.made & (unix.CLONE_NEWIPC | unix.CLONE_NEWNET); own != 0 {
		if err := unix.Setns(k.stub.pidfd, int(own)); err != nil {
			return err
		}
	}
	b := &builder{engine: e, stub: k.stub, ns: &namespaces{}, spec: &specs.Spec{Linux: &specs.Linux{MountLabel: r.label}}}
	for _, m := range r.mounts {
		o, err := parseOptions(m.Type, m.Options)
		if err != nil {
			return err
		}
		fd, err := b.newMount(&mountPoint{Mount: m, mountOptions: o, source: -1})
		if err != nil {
			return err
		}
		k.mounts[m.Destination] = fd
		if m.Destination == "/dev" && r.devices {
			if err := b.fillDev(fd, nil); err != nil {
				return err
			}
			if k.dev, err = mountID(fd); err != nil {
				return err
			}
		}
		if err := k.within(m.Destination, fd); err != nil {
			return err
		}
	}
	return k.cover(b, r)
}

// within attaches a mount to the one that it lies in, if that is in the kit. Before Linux 6.15 nothing could be mounted in
// what is detached itself; then the mount point is there at least.
func (k *kit) within(dest string, fd int) error {
	parent, ok := k.mounts[path.Dir(dest)]
	if !ok || parent < 0 {
		return nil
	}
	t, err := ensure(parent, path.Base(dest), true)
	if err != nil {
		return err
	}
	defer unix.Close(t)
	err = attach(fd, t)
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err == nil {
		unix.Close(fd)
		k.mounts[dest] = -1
	}
	return err
}

// cover masks paths in proc, and makes others read-only; what is not there may be when a container is made.
func (k *kit) cover(b *builder, r *recipe) error {
	proc, ok := k.mounts["/proc"]
	if !ok || len(r.masked)+len(r.readOnly) == 0 {
		return nil
	}
	null, err := b.cloneNull()
	if err != nil {
		return err
	}
	defer unix.Close(null)
	empty, err := b.cloneEmpty()
	if err != nil {
		return err
	}
	defer unix.Close(empty)
	each := func(paths []string, do func(t int) error) error {
		for _, p := range paths {
			t, err := inRoot(proc, strings.TrimPrefix(p, "/proc"), unix.O_PATH, 0)
			if err != nil {
				continue // the container's turn
			}
			if err = do(t); err == nil {
				k.covered[p] = true
			}
			unix.Close(t)
			if errors.Is(err, unix.EINVAL) { // see within
				return nil
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	file, dir := masker{fd: null, used: true}, masker{fd: empty, used: true}
	if err = each(r.masked, func(t int) error { return hide(t, &file, &dir) }); err != nil {
		return err
	}
	masked := slices.Collect(maps.Keys(k.covered))
	if err = each(r.readOnly, readOnlyClone); err != nil {
		return err
	}
	for _, p := range masked { // now: what is made read-only is covered by a clone, with other masks
		t, err := inRoot(proc, strings.TrimPrefix(p, "/proc"), unix.O_PATH, 0)
		if errors.Is(err, unix.ENOENT) { // in a masked directory
			continue
		}
		if err != nil {
			return err
		}
		id, err := mountID(t)
		unix.Close(t)
		if err != nil {
			return err
		}
		k.masking[id] = true
	}
	return nil
}

func mountID(fd int) (uint64, error) {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st) // Linux 5.8
	return st.Mnt_id, err
}

// masks tells whether t is what masks a path in proc, and so in proc to everybody else.
func (k *kit) masks(t int) bool {
	if k == nil || len(k.masking) == 0 {
		return false
	}
	id, err := mountID(t)
	return err != nil || k.masking[id]
}

// filled tells whether dev is the /dev that the default devices were made in; something may have been mounted over it.
func (k *kit) filled(dev int) bool {
	if k == nil || k.dev == 0 {
		return false
	}
	id, err := mountID(dev)
	return err == nil && id == k.dev
}

// close closes what nobody has taken of the mounts.
func (k *kit) close() {
	for _, fd := range k.mounts {
		closeFD(fd)
	}
	k.mounts = nil
}

// discard ends a kit that is not to be used.
func (k *kit) discard() {
	k.close()
	if k.stub != nil {
		k.stub.kill()
	}
}

// mount hands over the mount for a destination, if it was made ahead: -1 if there is nothing left to do for it.
func (k *kit) mount(dest string) (fd int, ok bool) {
	if k == nil {
		return -1, false
	}
	fd, ok = k.mounts[dest]
	delete(k.mounts, dest)
	return fd, ok
}
