package sandbox

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/network"
	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
	"github.com/seed-9a14075a/cri-server/pkg/records"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// Open reads the records. Recover must follow before anything else is asked of the set. The caller closes it.
func Open(cfg Config) (*Sandboxes, error) {
	store, err := records.Open[record](cfg.RecordsDir, recordVersion)
	if err != nil {
		return nil, fmt.Errorf("sandbox records: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(cfg.StateDir, "sandboxes"), 0o711); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.NetnsDir, 0o755); err != nil {
		return nil, err
	}
	return &Sandboxes{
		cfg: cfg, records: store, ops: operation.NewGroup(operation.Options{Log: cfg.Log}), netns: netns.NewPool(),
		byID: map[string]*Sandbox{}, byKey: map[string]string{}, died: map[string]bool{},
	}, nil
}

// Recover brings records and kernel together, given what cri-monitor knows of each sandbox's pause:
// a sandbox that was half made is taken down; a ready one without a live pause is not ready; a record that can't be
// read is listed as not ready and nothing it may stand for is touched. A stop that was cut short is the caller's to
// resume (Unfinished), since it begins with the containers. It returns an error only if the records can't be read at all;
// a sandbox that can't be taken down now stays listed, and the log says why.
func (s *Sandboxes) Recover(ctx context.Context, pauses map[string]monitor.State) error {
	entries, err := s.records.Load()
	if err != nil {
		return fmt.Errorf("sandbox records: %w", err)
	}
	for _, e := range entries {
		sb, err := &Sandbox{}, e.Err
		if err == nil {
			sb, err = fromRecord(e.ID, &e.Value)
		}
		if err != nil {
			s.cfg.Log.Error("sandbox record can't be read; the sandbox is listed as not ready", "sandbox", e.ID, "error", err)
			s.set(&Sandbox{
				ID: e.ID, State: NotReady, Broken: err.Error(), Config: &runtimeapi.PodSandboxConfig{},
				NetNS: filepath.Join(s.cfg.NetnsDir, network.Prefix+e.ID), Files: Files{Dir: s.dir(e.ID)},
			})
			continue
		}
		s.set(sb)
		s.settle(ctx, sb, e.SameBoot, pauses)
	}
	return nil
}

// settle decides what a sandbox's record means now.
func (s *Sandboxes) settle(ctx context.Context, sb *Sandbox, sameBoot bool, pauses map[string]monitor.State) {
	pause, known := pauses[sb.ID]
	alive := sameBoot && known && pause.Status == monitor.Running
	log := s.cfg.Log.With("sandbox", sb.ID)
	var err error
	switch {
	case sb.State == Creating:
		log.Info("taking down a sandbox that was not finished")
		err = s.discard(ctx, sb)
	case sb.State == Ready && !alive:
		log.Info("sandbox is not ready any more", "same_boot", sameBoot)
		_, err = s.change(sb.ID, func(sb *Sandbox) { sb.State, sb.Pid = NotReady, 0 })
	}
	if err != nil {
		log.Error("recover sandbox", "error", err)
	}
}

// StrayFiles lists the directories of pods' files whose sandbox has no record.
func (s *Sandboxes) StrayFiles() (stray []string, _ error) {
	dir := filepath.Join(s.cfg.StateDir, "sandboxes")
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if !s.Known(e.Name()) {
			stray = append(stray, filepath.Join(dir, e.Name()))
		}
	}
	return stray, err
}

// RemoveStrayFiles unmounts and removes one of them.
func (s *Sandboxes) RemoveStrayFiles(dir string) error { return removeFiles(Files{Dir: dir}) }

// Unfinished are the ids of the sandboxes whose stop has begun and not ended.
func (s *Sandboxes) Unfinished() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var ids []string
	for id, sb := range s.byID {
		if sb.Stopping && !sb.Released {
			ids = append(ids, id)
		}
	}
	return ids
}

// Live returns the ids of sandboxes that may own a network attachment: for the network's garbage collection.
func (s *Sandboxes) Live() map[string]bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	live := map[string]bool{}
	for id, sb := range s.byID {
		if !sb.Released {
			live[id] = true
		}
	}
	return live
}

// Known tells whether there is a sandbox of that exact id, finished or not.
func (s *Sandboxes) Known(id string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.byID[id] != nil
}

// PauseExited takes note that a sandbox's pause has ended: the sandbox is not ready from now on. It returns false
// if there is no such sandbox.
func (s *Sandboxes) PauseExited(id string) bool {
	s.mu.Lock()
	sb := s.byID[id]
	if sb != nil && sb.State == Creating {
		s.died[id] = true // for publish to find
	}
	s.mu.Unlock()
	if sb == nil {
		return false
	}
	if sb.State == Ready {
		_, err := s.change(id, func(sb *Sandbox) { sb.State, sb.Pid = NotReady, 0 })
		if err != nil && !errdefs.IsNotFound(err) {
			s.cfg.Log.Error("record that pause has ended", "sandbox", id, "error", err)
		}
	}
	return true
}

// Wait waits for running operations to end: for a graceful stop.
func (s *Sandboxes) Wait(ctx context.Context) error { return s.ops.Wait(ctx) }

// Close gives back what was made ahead. Sandboxes stay.
func (s *Sandboxes) Close() error { return s.netns.Close() }

// Operations are those that run now.
func (s *Sandboxes) Operations() []operation.Timeline { return s.ops.Running() }
