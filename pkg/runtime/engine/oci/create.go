package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// container is one container of the runtime.
type container struct {
	engine  *Engine
	id      string
	dir     string // the bundle
	cgroups string // Spec.Linux.CgroupsPath, "" if that was there before us
	init    *process

	deleting sync.Mutex // held over delete, so that a second one finds it done
	deleted  bool

	mu       sync.Mutex
	execs    map[*process]struct{} // exec'd processes that have not ended
	watchers sync.WaitGroup        // one per entry of execs
}

var validID = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]*$`)

// Create writes the bundle, mounts the root file system and runs the runtime's create.
func (e *Engine) Create(ctx context.Context, cfg *engine.Config) (engine.Container, error) {
	if err := e.check(cfg); err != nil {
		return nil, fmt.Errorf("create %s: %w", cfg.ID, err)
	}
	c := &container{engine: e, id: cfg.ID, dir: cfg.Dir, execs: map[*process]struct{}{}}
	if l := cfg.Spec.Linux; l != nil {
		old, err := cgroupDirs(l.CgroupsPath)
		if err != nil {
			return nil, fmt.Errorf("create %s: %w", cfg.ID, err)
		}
		if len(old) == 0 {
			c.cgroups = l.CgroupsPath
		}
	}
	if err := c.create(ctx, cfg); err != nil {
		// The caller's ctx may be what ended; what was made has to go all the same.
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), deleteTimeout)
		defer cancel()
		if left := c.undo(undo, err); left != nil {
			err = errors.Join(err, fmt.Errorf("and cleaning up after it: %w", left))
		}
		return nil, fmt.Errorf("create %s: %w", cfg.ID, err)
	}
	return c, nil
}

func (e *Engine) check(cfg *engine.Config) error {
	s := cfg.Spec
	switch {
	case !validID.MatchString(cfg.ID):
		return fmt.Errorf("id %q is not [a-z0-9][a-z0-9_.-]*: %w", cfg.ID, errdefs.ErrInvalidArgument)
	case s == nil || s.Process == nil || len(s.Process.Args) == 0:
		return fmt.Errorf("no process in the spec: %w", errdefs.ErrInvalidArgument)
	case !filepath.IsAbs(cfg.Dir):
		return fmt.Errorf("directory %q is not an absolute path: %w", cfg.Dir, errdefs.ErrInvalidArgument)
	case cfg.Cgroup != nil:
		return fmt.Errorf("an OCI runtime makes the cgroup itself; it can't use a given one: %w", errdefs.ErrInvalidArgument)
	case !filepath.IsAbs(s.Process.Cwd):
		return fmt.Errorf("process.cwd %q is not an absolute path: %w", s.Process.Cwd, errdefs.ErrInvalidArgument)
	case s.Process.Terminal && (cfg.Stdin != nil || cfg.Stdout != nil || cfg.Stderr != nil):
		return fmt.Errorf("stdio given together with a terminal: %w", errdefs.ErrInvalidArgument)
	}
	if _, _, _, err := userNamespace(s.Linux); err != nil {
		return err
	}
	return e.refuse(s)
}

func (c *container) create(ctx context.Context, cfg *engine.Config) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	cfg, done, err := c.engine.makeUserNS(ctx, cfg)
	if err != nil {
		return err
	}
	defer done()
	if err := c.writeBundle(cfg); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	if err := c.mount(cfg); err != nil {
		return fmt.Errorf("root file system: %w", err)
	}
	pidFile := filepath.Join(c.dir, "init.pid")
	args := []string{"create", "--bundle", c.dir, "--pid-file", pidFile}
	p, err := c.spawn(ctx, spawn{
		args: args, pidFile: pidFile, timeout: createTimeout, process: cfg.Spec.Process,
		stdin: cfg.Stdin, stdout: cfg.Stdout, stderr: cfg.Stderr,
	})
	if err != nil {
		return err
	}
	c.init = p
	return nil
}

// mount mounts the root on rootfs/, id-mapped for the user namespace that the container joins: the layers are shared
// between pods, so their owners on disk can't be the container's, and runtimes leave the root as it is.
func (c *container) mount(cfg *engine.Config) error {
	if err := c.mountRoot(cfg); err != nil {
		return err
	}
	// runc 1.1.5 makes the links of /dev (ptmx, fd, …) by path before it has changed its root, so a link in place of
	// /dev would lead it to a directory of the host. The same goes for whatever else is set up by path.
	for _, name := range []string{"dev", "proc", "sys"} {
		st, err := os.Lstat(filepath.Join(c.rootfs(), name))
		if err == nil && st.Mode()&os.ModeSymlink != 0 {
			return fmt.Errorf("/%s is a symbolic link in the image: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func (c *container) mountRoot(cfg *engine.Config) error {
	joined, rootUID, rootGID, err := userNamespace(cfg.Spec.Linux)
	if err != nil {
		return err
	}
	if joined == nil {
		return cfg.Rootfs.MountAt(c.rootfs(), rootfs.Options{})
	}
	ns, err := os.Open(joined.Path)
	if err != nil {
		return fmt.Errorf("user namespace: %w", err)
	}
	defer ns.Close()
	return cfg.Rootfs.MountAt(c.rootfs(), rootfs.Options{UserNS: ns, RootUID: rootUID, RootGID: rootGID})
}

func (c *container) rootfs() string { return filepath.Join(c.dir, "rootfs") }

// writeBundle writes config.json and makes the mount point of the root.
func (c *container) writeBundle(cfg *engine.Config) error {
	s := *cfg.Spec
	s.Version = c.engine.features.specVersion(s.Version)
	s.Root = &specs.Root{Path: c.rootfs()}
	if cfg.Spec.Root != nil {
		s.Root.Readonly = cfg.Spec.Root.Readonly
	}
	b, err := json.Marshal(&s)
	if err != nil {
		return err
	}
	// Environment variables are often secrets, so nobody else may read this.
	if err := os.WriteFile(filepath.Join(c.dir, "config.json"), b, 0o600); err != nil {
		return err
	}
	if ns, _, _, err := userNamespace(s.Linux); err != nil {
		return err
	} else if ns != nil { // its root, another user, has to pass through (crun: relative to the bundle)
		if err := os.Chmod(c.dir, 0o711); err != nil {
			return err
		}
	}
	return os.Mkdir(c.rootfs(), 0o755)
}

// Process is the container's first process.
func (c *container) Process() engine.Process { return c.init }

// Delete has the runtime forget the container and releases the bundle.
func (c *container) Delete(ctx context.Context) error {
	c.deleting.Lock()
	defer c.deleting.Unlock()
	if c.deleted {
		return nil
	}
	if err := errors.Join(c.forget(ctx), c.release()); err != nil {
		return fmt.Errorf("delete %s: %w", c.id, err)
	}
	for _, p := range append(c.running(), c.init) {
		_ = p.Signal(unix.SIGKILL)
		if err := p.wait(ctx); err != nil {
			return fmt.Errorf("delete %s: process %d has not ended: %w", c.id, p.pid, err)
		}
	}
	c.watchers.Wait()
	c.init.close()
	c.deleted = true
	return nil
}

// undo takes down what a create that failed with cause left, killing what still runs.
func (c *container) undo(ctx context.Context, cause error) error {
	if errdefs.IsAlreadyExists(cause) {
		return c.release() // the runtime's container and its cgroup are somebody else's
	}
	return errors.Join(c.forget(ctx), removeCgroups(ctx, c.cgroups), c.release())
}

// forget runs the runtime's delete.
func (c *container) forget(ctx context.Context) error {
	err := c.engine.run(ctx, invocation{args: []string{"delete", "--force", c.id}, dir: c.dir, timeout: deleteTimeout})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
