// Package oci drives an OCI runtime binary (runc, crun, runsc, kata-runtime) behind engine.Engine.
//
// The engine runs in the process that is child subreaper for its containers (cri-monitor): the runtime's create and
// exec commands fork the container's process and exit, the process is orphaned to us, and its exit arrives at the
// reaper.Reaper. Every command has a deadline of its own and runs through reaper.Command.
//
// Owned on disk: the bundle in engine.Config.Dir (config.json, rootfs/, short-lived pid, log and console files) and
// the runtime's state below Config.Root. Owned in the kernel: the mount of the root file system on rootfs/, the pidfds
// of the processes, and whatever the runtime makes (namespaces, the cgroup of Spec.Linux.CgroupsPath). Delete gives all
// of it back; so does a Create that fails.
//
// A runtime may find out about a missing program at create instead of at start, and says so there.
package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

// Deadlines of the runtime's commands. Create is long because VM runtimes boot a kernel in it and hooks run in it.
const (
	probeTimeout   = 10 * time.Second
	createTimeout  = 2 * time.Minute
	startTimeout   = time.Minute
	execTimeout    = time.Minute
	killTimeout    = 30 * time.Second
	deleteTimeout  = time.Minute
	consoleTimeout = 10 * time.Second // for a terminal that the runtime promised by exiting with 0
	cancelGrace    = 5 * time.Second  // for an exec to end by itself after its context did
	lostTimeout    = time.Second      // for the exit of a process that is gone to become known
	deathTimeout   = 10 * time.Second // from SIGKILL to the reaped process
)

// Config names the runtime.
type Config struct {
	Path string   // the runtime binary; looked up in PATH when it has no slash
	Root string   // its --root: where it keeps its state. Made if missing.
	Args []string // further global arguments, such as --systemd-cgroup

	// UserNS makes a user namespace with mappings of uids and gids, which is at path until release is called. Nil: containers
	// can only join one.
	UserNS func(ctx context.Context, uids, gids []specs.LinuxIDMapping) (path string, release func(), err error)
}

// Engine runs containers through one runtime binary.
type Engine struct {
	path     string // absolute
	root     string
	args     []string
	reaper   *reaper.Reaper
	userNS   func(ctx context.Context, uids, gids []specs.LinuxIDMapping) (string, func(), error)
	features capability
	serial   atomic.Uint64 // names of short-lived files
}

// New asks the runtime what it can do (at most ten seconds). errdefs.ErrNotFound when there is no such binary.
func New(cfg Config, r *reaper.Reaper) (*Engine, error) {
	path, err := exec.LookPath(cfg.Path)
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("oci runtime %q: no such program: %w", cfg.Path, errdefs.ErrNotFound)
	} else if err != nil {
		return nil, fmt.Errorf("oci runtime %q: %w", cfg.Path, err)
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, fmt.Errorf("oci runtime %q: %w", cfg.Path, err)
	}
	if !filepath.IsAbs(cfg.Root) {
		return nil, fmt.Errorf("oci runtime %q: root %q is not an absolute path: %w", cfg.Path, cfg.Root, errdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(cfg.Root, 0o700); err != nil {
		return nil, fmt.Errorf("oci runtime %q: root: %w", cfg.Path, err)
	}
	e := &Engine{path: path, root: cfg.Root, args: cfg.Args, reaper: r, userNS: cfg.UserNS}
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	if e.features, err = e.probe(ctx); err != nil {
		return nil, fmt.Errorf("oci runtime %q: %w", cfg.Path, err)
	}
	return e, nil
}

// Name is "oci:" and the binary's base name.
func (e *Engine) Name() string { return "oci:" + filepath.Base(e.path) }

var _ engine.Engine = (*Engine)(nil)
