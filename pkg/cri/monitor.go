package cri

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/seed-9a14075a/cri-server/pkg/runtime"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor/pack"
	"github.com/seed-9a14075a/cri-server/pkg/sandbox"
)

// upgradeTime bounds the upgrade of a running cri-monitor at the server's start.
const upgradeTime = 30 * time.Second

// callMonitor connects to the node's cri-monitor and starts it if there is none. From then on the server keeps what it
// holds, and starts the next one should it die.
func (s *Server) callMonitor(ctx context.Context) (*monitor.Client, error) {
	path := s.cfg.MonitorPath
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		path = filepath.Join(filepath.Dir(self), "cri-monitor")
	}
	dir := filepath.Join(s.cfg.State, "monitor")
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	cfg := monitor.LaunchConfig{
		Path: path, Socket: filepath.Join(dir, "monitor.sock"), StateDir: dir, LogFile: filepath.Join(dir, "monitor.log"),
		Packer: &pack.Packer{},
	}
	c, err := monitor.Launch(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("cri-monitor: %w", err)
	}
	if s.cfg.MonitorUpgrade {
		if err := s.upgradeMonitor(ctx, c, path); err != nil {
			s.log.Warn("the running cri-monitor goes on as it is", "error", err)
		}
	}
	if err := c.Keep(ctx, cfg, s.log); err != nil && !errdefs.IsNotImplemented(err) {
		_ = c.Close()
		return nil, fmt.Errorf("cri-monitor: %w", err)
	}
	return c, nil
}

// upgradeMonitor has a running cri-monitor of another version go on in the program at path.
func (s *Server) upgradeMonitor(ctx context.Context, c *monitor.Client, path string) error {
	ctx, cancel := context.WithTimeout(ctx, upgradeTime)
	defer cancel()
	running, err := c.Version(ctx)
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return fmt.Errorf("%s --version: %w", path, err)
	}
	build := strings.TrimSpace(string(out))
	if build == running.Build {
		return nil
	}
	now, err := c.Upgrade(ctx, path)
	if err != nil {
		return err
	}
	s.log.Info("cri-monitor was upgraded", "from", running.Build, "to", now.Build, "pid", now.Pid)
	return nil
}

// missing takes note of containers and sandboxes that cri-monitor does not know although their records say that they
// run: they were lost with another one. seen are those that it has told of.
func (s *Server) missing(ctx context.Context, seen map[string]bool) {
	var ids []string
	for _, ctr := range s.containers.List() {
		if ctr.State == runtime.Created || ctr.State == runtime.Running {
			ids = append(ids, ctr.ID)
		}
	}
	for _, sb := range s.sandboxes.List() {
		if sb.State == sandbox.Ready {
			ids = append(ids, sb.ID)
		}
	}
	for _, id := range ids {
		if seen[id] {
			continue
		}
		// One that has come since is not among those told of.
		if _, err := s.monitor.State(ctx, id); !errdefs.IsNotFound(err) {
			continue
		}
		s.log.Error("cri-monitor has lost a container", "container", id)
		st := monitor.State{ID: id, Status: monitor.Stopped, FinishedAt: time.Now(), ExitCode: 255, ExitUnknown: true}
		if !s.containers.Exited(st) {
			s.sandboxes.PauseExited(id)
		}
	}
}
