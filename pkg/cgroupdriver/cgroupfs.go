package cgroupdriver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// cgroupfs is the driver that makes directories and writes files itself. It keeps no state but the mounts.
type cgroupfs struct {
	*layout
	log    *slog.Logger
	parent string
	owner  string
	// hierarchy maps a v1 controller to its hierarchy's name: cpu → cpu,cpuacct.
	hierarchy map[string]string
	unmarked  sync.Once
}

func newCgroupfs(cfg Config, l *layout) (*cgroupfs, error) {
	parent, err := clean(cfg.DefaultParent)
	if err != nil {
		return nil, fmt.Errorf("default parent: %w", err)
	}
	d := &cgroupfs{layout: l, log: cfg.Logger, parent: parent, owner: cfg.Owner, hierarchy: map[string]string{}}
	for name := range l.v1 {
		for c := range strings.SplitSeq(name, ",") {
			d.hierarchy[c] = name
		}
	}
	return d, nil
}

func (d *cgroupfs) Name() string { return "cgroupfs" }

func (d *cgroupfs) Version() int {
	if d.v2 {
		return 2
	}
	return 1
}

// dirs returns where the cgroup is in every hierarchy, whether it exists or not.
func (d *cgroupfs) dirs(path string) *engine.Cgroup {
	cg := &engine.Cgroup{}
	if d.unified != "" {
		cg.Unified = filepath.Join(d.unified, path)
	}
	if len(d.v1) > 0 {
		cg.V1 = make(map[string]string, len(d.v1))
		for name, mount := range d.v1 {
			cg.V1[name] = filepath.Join(mount, path)
		}
	}
	return cg
}

// all returns every directory of cg, the hierarchies in a fixed order, the unified one last: its cgroup.kill then
// finds what joined the others before.
func all(cg *engine.Cgroup) []string {
	var dirs []string
	for _, name := range slices.Sorted(maps.Keys(cg.V1)) {
		dirs = append(dirs, cg.V1[name])
	}
	if cg.Unified != "" {
		dirs = append(dirs, cg.Unified)
	}
	return dirs
}

// primary is the hierarchy that carries the marks.
func (d *cgroupfs) primary() string {
	if d.unified != "" {
		return d.unified
	}
	for _, c := range []string{"pids", "freezer", "memory", "cpu"} {
		if h, ok := d.hierarchy[c]; ok {
			return d.v1[h]
		}
	}
	return d.v1[slices.Sorted(maps.Keys(d.v1))[0]]
}

// controller returns a v1 controller's directory of cg.
func (d *cgroupfs) controller(cg *engine.Cgroup, name string) (string, error) {
	if dir := cg.V1[d.hierarchy[name]]; dir != "" {
		return dir, nil
	}
	return "", fmt.Errorf("the %s controller is not mounted: %w", name, errdefs.ErrNotImplemented)
}

func (d *cgroupfs) Create(ctx context.Context, path string, res *specs.LinuxResources) (*engine.Cgroup, error) {
	cg, finish, err := d.Begin(ctx, path, res)
	if err == nil && finish != nil {
		err = finish(ctx)
	}
	if err != nil {
		return nil, err
	}
	return cg, nil
}

// Settle has nothing to do: an empty cgroup stays.
func (d *cgroupfs) Settle(string, int) {}

// OCI: a runtime takes an empty cgroup that is there as its own.
func (d *cgroupfs) OCI(path string) OCI { return OCI{CgroupsPath: path} }

// createSession makes a cgroup for an exec session below a container's: only in the hierarchy that Kill uses, since
// limits are the container's; in the others the session's processes join the container itself. On v2 no controller
// is enabled for it, so that the container's cgroup may hold processes beside it (cgroups(7), no internal processes).
func (d *cgroupfs) createSession(path string, res *specs.LinuxResources) (*engine.Cgroup, error) {
	if res != nil && !emptyResources(res) {
		return nil, fmt.Errorf("limits of a cgroup inside a container's: %w", errdefs.ErrNotImplemented)
	}
	cg := d.dirs(filepath.Dir(path))
	dir := filepath.Join(d.primary(), path)
	if d.unified != "" {
		cg.Unified = dir
	} else {
		for name, mount := range d.v1 {
			if mount == d.primary() {
				cg.V1[name] = dir
			}
		}
	}
	if err := unix.Mkdir(dir, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &os.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	return cg, nil
}

// mkdirs makes dir and what is missing above it, and adds what it made to made. What it makes above is marked for
// Delete to take away with the last child: the kubelet makes and removes pods' cgroups, but on a hybrid layout not in
// the unified hierarchy, and other clients make none. In the v1 cpuset hierarchy a new cgroup has neither CPUs nor
// memory nodes and takes no process until it gets its parent's (cpuset(7)).
func (d *cgroupfs) mkdirs(dir string, made *[]string) error { return d.mkdir(dir, made, true) }

// mkdir is mkdirs for a container's own directory, the leaf, or one above it.
func (d *cgroupfs) mkdir(dir string, made *[]string, leaf bool) error {
	// A sibling's Delete or rollback may remove the parent between our two steps.
	for try := 0; ; try++ {
		err := unix.Mkdir(dir, 0o755)
		if errors.Is(err, unix.EEXIST) {
			return nil
		}
		if errors.Is(err, unix.ENOENT) && try < 8 {
			before := len(*made)
			if err := d.mkdir(filepath.Dir(dir), made, false); err != nil {
				return err
			}
			for _, parent := range (*made)[before:] {
				d.mark(parent, parentMark)
			}
			continue
		}
		if err != nil {
			return &os.PathError{Op: "mkdir", Path: dir, Err: err}
		}
		c := d.hierarchy["cpuset"]
		if c == "" || !strings.HasPrefix(dir, d.v1[c]+"/") {
			*made = append(*made, dir)
			return nil
		}
		err = inheritCpuset(dir, d.v1[c], leaf)
		if (errors.Is(err, errdefs.ErrNotFound) || errors.Is(err, os.ErrNotExist)) && try < 8 {
			continue // a parent that went before it was filled and had its child
		}
		*made = append(*made, dir)
		return err
	}
}

func (d *cgroupfs) Load(path string) (*engine.Cgroup, error) {
	path, err := clean(path)
	if err != nil {
		return nil, err
	}
	cg, found := d.dirs(path), false
	exists := func(dir string) bool {
		var st unix.Stat_t
		ok := unix.Stat(dir, &st) == nil
		found = found || ok
		return ok
	}
	if cg.Unified != "" && !exists(cg.Unified) {
		cg.Unified = ""
	}
	for name, dir := range cg.V1 {
		if !exists(dir) {
			delete(cg.V1, name)
		}
	}
	if !found {
		return nil, fmt.Errorf("cgroup %s: %w: %w", path, errGone, errdefs.ErrNotFound)
	}
	return cg, nil
}

// List walks the hierarchy with the marks.
func (d *cgroupfs) List() ([]string, error) {
	root := d.primary()
	var paths []string
	err := filepath.WalkDir(root, func(p string, e os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) && p != root {
			return nil
		}
		if err != nil {
			return err
		}
		if !e.IsDir() {
			return nil
		}
		if p != root && d.marked(p, containerMark) {
			paths = append(paths, strings.TrimPrefix(p, root))
			return filepath.SkipDir
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list cgroups: %w", err)
	}
	return paths, nil
}

// The attributes that mark a container's cgroup and a parent that was made for one; the value is the owner.
const (
	containerMark = "cri-server"
	parentMark    = "cri-server-parent"
)

// markSpaces: trusted.* needs CAP_SYS_ADMIN in the first user namespace, user.* is there from Linux 5.7 on.
var markSpaces = []string{"trusted.", "user."}

func (d *cgroupfs) mark(dir, name string) {
	var err error
	for _, space := range markSpaces {
		if err = unix.Setxattr(dir, space+name, []byte(d.owner), 0); err == nil {
			return
		}
	}
	d.unmarked.Do(func() {
		d.log.Warn("cgroups can't be marked as this server's: those that a crash leaves behind won't be found", "dir", dir, "error", err)
	})
}

func (d *cgroupfs) marked(dir, name string) bool {
	buf := make([]byte, 256)
	// A cgroup's end asks this of the pod's in every hierarchy, of which mostly none is marked: one call tells that (listxattr(2)).
	if n, err := unix.Listxattr(dir, buf); err == nil && !bytes.Contains(buf[:n], []byte("."+name+"\x00")) {
		return false
	}
	for _, space := range markSpaces {
		if n, err := unix.Getxattr(dir, space+name, buf); err == nil && string(buf[:n]) == d.owner {
			return true
		}
	}
	return false
}

const (
	pollFirst = time.Millisecond
	pollMax   = 20 * time.Millisecond
)

// poll calls done until it returns true, an error, or ctx ends; it waits a little longer each time.
func poll(ctx context.Context, done func() (bool, error)) error {
	wait := pollFirst
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		wait = min(2*wait, pollMax)
	}
}
