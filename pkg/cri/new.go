package cri

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/seed-9a14075a/cri-server/pkg/cgroupdriver"
	"github.com/seed-9a14075a/cri-server/pkg/config"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/registry"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/unpack"
	"github.com/seed-9a14075a/cri-server/pkg/network"
	"github.com/seed-9a14075a/cri-server/pkg/runtime"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/handler"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/seccomp"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/spec"
	"github.com/seed-9a14075a/cri-server/pkg/sandbox"
	"github.com/seed-9a14075a/cri-server/pkg/sandbox/pause"
	"github.com/seed-9a14075a/cri-server/pkg/streaming"
)

// New opens the stores, finds or starts cri-monitor, and brings the records and what is there together. The caller holds
// the locks on cfg.Root and cfg.State. version is the server's own, a semantic version.
func New(ctx context.Context, cfg *config.Config, version string, log *slog.Logger) (_ *Server, err error) {
	s := &Server{cfg: cfg, log: log, version: strings.TrimPrefix(version, "v"), started: time.Now()}
	s.ends = s.newEnds()
	var undo []func() error
	defer func() {
		for _, f := range slices.Backward(undo) {
			if err != nil {
				_ = f()
			}
		}
	}()
	if s.host, err = spec.ProbeHost(); err != nil {
		return nil, fmt.Errorf("probe the host: %w", err)
	}
	s.host.Defaults = spec.Defaults{
		NoFileSoft: cfg.NofileSoft, NoFileHard: cfg.NofileHard, UnprivilegedPorts: cfg.EnableUnprivilegedPorts,
		UnprivilegedICMP: cfg.EnableUnprivilegedICMP, SeccompProfile: cfg.SeccompDefaultProfile, CDIDirs: cfg.CDIDirs,
	}
	if s.handlers, err = handlers(cfg); err != nil {
		return nil, err
	}
	if s.cgroups, err = cgroupdriver.New(cgroupdriver.Config{
		Driver: cfg.CgroupDriver, DefaultParent: cfg.DefaultCgroupParent, Logger: log,
		Owner: "cri-server " + cfg.Root, // instances side by side have roots of their own
	}); err != nil {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	// The three slow ones do not need each other.
	var g errgroup.Group
	g.Go(func() (err error) { s.monitor, err = s.callMonitor(ctx); return err })
	g.Go(func() (err error) { s.images, err = s.openImages(); return err })
	g.Go(func() (err error) { s.network, err = s.openNetwork(); return err })
	err = g.Wait()
	if s.monitor != nil {
		undo = append(undo, s.monitor.Close)
	}
	if s.images != nil {
		undo = append(undo, s.images.Close)
	}
	if s.network != nil {
		undo = append(undo, s.network.Close)
	}
	if err != nil {
		return nil, err
	}
	s.trim.start()
	undo = append(undo, s.trim.stop)
	err = s.openPods()
	if s.sandboxes != nil {
		undo = append(undo, s.sandboxes.Close)
	}
	if err != nil {
		return nil, err
	}
	s.trim.with(func(ctx context.Context) {
		s.sandboxes.Compact(ctx)
		s.containers.Compact(ctx)
	})
	if err := s.recover(ctx); err != nil {
		return nil, fmt.Errorf("recover: %w", err)
	}
	if s.streaming, err = streaming.New(streaming.Config{
		Address: cfg.Stream.Address, CertFile: cfg.Stream.TLSCert, KeyFile: cfg.Stream.TLSKey, IdleTimeout: cfg.Stream.IdleTimeout,
		CreationTimeout: cfg.Stream.CreationTimeout, Log: log,
	}, streams{s}); err != nil {
		return nil, err
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.tasks.Add(1)
	go func() { defer s.tasks.Done(); s.follow(background) }()
	s.tasks.Go(func() { s.resume(background) })
	return s, nil
}

func handlers(cfg *config.Config) (*handler.Table, error) {
	var list []handler.Handler
	for name, r := range cfg.Runtimes {
		h := handler.Handler{Name: name, Configured: r.Features}
		if r.Engine == "oci" {
			root := r.Root
			if root == "" {
				root = filepath.Join(cfg.State, "oci", name)
			}
			h.OCI = &monitor.OCIRuntime{Path: r.Path, Root: root, Args: r.Args}
		}
		list = append(list, h)
	}
	return handler.NewTable(list, cfg.DefaultRuntime)
}

func (s *Server) openImages() (imagestore.Store, error) {
	i := s.cfg.Image
	store, err := imagestore.Open(imagestore.Config{
		ImportDir: i.ImportDir, Pinned: i.Pinned,
		Root: filepath.Join(s.cfg.Root, "images"), Snapshotter: i.Snapshotter, ConcurrentLayers: i.MaxParallelLayers,
		DiscardUnpackedLayers: i.DiscardBlobs, Logger: s.log,
		Limits: imagestore.Limits{
			Manifest: i.MaxManifestBytes, Config: i.MaxConfigBytes, IndexEntries: i.MaxIndexEntries, Layers: i.MaxLayers, Layer: i.MaxLayerBytes,
			Archive: i.MaxArchiveBytes,
			Unpack:  unpack.Limits{Entries: i.MaxLayerFiles, Bytes: i.MaxUnpackedBytes, PathLength: i.MaxPathLength, Depth: i.MaxPathDepth},
		},
		Registry: registry.Config{
			CertsDirs: []string{i.CertsDir}, RegistriesFiles: i.RegistriesFiles, AuthFiles: i.AuthFiles,
			StallTimeout: i.PullStallTimeout, StallBytes: i.PullStallBytes,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	return store, nil
}

func (s *Server) openNetwork() (network.Network, error) {
	n := s.cfg.Network
	c := network.Config{
		Mode: n.Mode, ConfDir: n.ConfDir, BinDirs: n.BinDirs, NetnsDir: n.NetnsDir, PodCIDRs: n.PodCIDR, Bridge: n.Bridge,
		CacheDir: filepath.Join(s.cfg.Root, "cni"), Logger: s.log,
	}
	if n.Mode == network.ModeEmbedded { // else leases lie where the reference plugins have them, for any runtime to see
		c.StateDir = filepath.Join(s.cfg.Root, "networks")
	}
	net, err := network.New(c)
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	return net, nil
}

func (s *Server) openPods() error {
	// Below root, not state: /run is often mounted noexec.
	pauseRoot, err := pause.Install(filepath.Join(s.cfg.Root, "pause"))
	if err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	if s.sandboxes, err = sandbox.Open(sandbox.Config{
		RecordsDir: filepath.Join(s.cfg.Root, "sandboxes"), StateDir: s.cfg.State, NetnsDir: s.cfg.Network.NetnsDir,
		Monitor: s.monitor, Cgroups: s.cgroups, Network: s.network, Handlers: s.handlers, Host: s.host,
		Seccomp: seccomp.Compile, Pause: pauseRoot, ShmSize: s.cfg.ShmSize, Changed: s.sandboxChanged, Log: s.log,
	}); err != nil {
		return err
	}
	s.containers, err = runtime.Open(runtime.Config{
		RecordsDir: filepath.Join(s.cfg.Root, "containers"), StateDir: s.cfg.State, Monitor: s.monitor, Cgroups: s.cgroups,
		Images: s.images, Handlers: s.handlers, Host: s.host, Seccomp: seccomp.Compile,
		ExecOutputLimit: s.cfg.MaxExecOutput, Changed: s.containerChanged, Log: s.log,
	})
	return err
}
