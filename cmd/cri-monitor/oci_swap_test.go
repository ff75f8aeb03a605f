package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// TestOCISwap replaces and kills cri-monitor under containers of OCI runtimes.
func TestOCISwap(t *testing.T) {
	for _, name := range []string{"crun", "runc"} {
		t.Run(name, func(t *testing.T) {
			path, err := exec.LookPath(name)
			if err != nil {
				t.Skip(name, " is missing")
			}
			if name == "crun" {
				hideUnified(t)
			}
			t.Cleanup(func() { removeCgroups(t) })
			l := newLoad(t)
			if err := l.Keep(t.Context(), l.cfg, slog.Default()); err != nil {
				t.Fatal(err)
			}
			request := func(id, script string) *monitor.CreateRequest {
				req := l.request(id, script)
				req.OCI = &monitor.OCIRuntime{Path: path, Root: filepath.Join(l.dir, "root")}
				req.Spec.Linux.CgroupsPath = testns.CgroupParent() + "/" + name + "-" + id
				return req
			}
			running := request("running", "cat; echo ends; exit 6")
			running.Stdin, running.StdinOnce = true, true
			l.run(running)
			for _, id := range []string{"first", "second"} {
				if _, err := l.Create(t.Context(), request(id, "echo here; exit 3")); err != nil {
					t.Fatal(err)
				}
			}
			x, k := l.exec("running")
			k.line()
			if _, err := l.Upgrade(t.Context(), l.cfg.Path); err != nil {
				t.Fatal(err)
			}
			k.line()
			k.in.Close()
			if code, err := x.Wait(t.Context()); code != 0 || err != nil {
				t.Errorf("session over an upgrade: %d, %v", code, err)
			}
			x.Close()
			l.ends("first", 3, "here\n")
			// Killed in the middle of what the runtime does.
			for i := range 3 {
				done := make(chan error, 1)
				go func() { done <- l.ociLife(request(fmt.Sprintf("life%d", i), "exit 4")) }()
				l.kill()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
			l.ends("second", 3, "here\n")
			a, k := l.attach("running")
			k.line()
			k.in.Close()
			if st := l.stopped("running"); st.ExitCode != 6 || st.ExitUnknown {
				t.Errorf("%+v", st)
			}
			a.Close()
		})
	}
}

// ends starts a container and expects its end.
func (l *load) ends(id string, code int, log string) {
	l.t.Helper()
	if _, err := l.Start(l.t.Context(), id); err != nil {
		l.t.Error(err)
	}
	if st := l.stopped(id); st.ExitCode != code || st.ExitUnknown {
		l.t.Errorf("%+v", st)
	}
	b, _ := os.ReadFile(filepath.Join(l.dir, id+".log"))
	if got := texts(b); got != log {
		l.t.Errorf("log of %s: %q", id, b)
	}
}

func (l *load) ociLife(req *monitor.CreateRequest) error {
	if _, err := l.Create(l.t.Context(), req); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	_, err := l.Start(l.t.Context(), req.ID)
	if err != nil && !errdefs.IsUnavailable(err) {
		return fmt.Errorf("start: %w", err)
	}
	st := l.stopped(req.ID)
	if err == nil && (st.ExitCode != 4 || st.ExitUnknown) {
		err = fmt.Errorf("%+v", st)
	} else {
		err = nil
	}
	return errors.Join(err, l.Delete(context.Background(), req.ID))
}
