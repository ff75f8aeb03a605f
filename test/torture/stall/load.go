package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// load is what cri-monitor carries besides the writer: sessions that stay open (session.go), short execs, and pods that come
// and go.
type load struct {
	n        *testnode.Node
	sessions []*session
	echo     string // the container that the attachments are attached to; its log
	log      string
	idle     string // the container for execs

	ended chan struct{}
	once  sync.Once

	mu            sync.Mutex
	execs, pods   int
	longest, life time.Duration // of an exec; of a pod
}

var busybox = &cri.ImageSpec{Image: "registry.k8s.io/" + images.Busybox}

// startLoad runs the containers and opens the sessions.
func startLoad(ctx context.Context, n *testnode.Node) (*load, error) {
	l := &load{n: n, ended: make(chan struct{})}
	pod := l.pod("sessions")
	p, err := n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod})
	if err != nil {
		return nil, err
	}
	for _, c := range []struct {
		id   *string
		name string
		args []string
	}{{&l.idle, "idle", []string{"sleep", "100000"}}, {&l.echo, "echo", []string{"cat"}}} {
		if *c.id, err = l.container(ctx, p.PodSandboxId, pod, &cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: c.name}, Image: busybox,
			Command: c.args, LogPath: c.name + ".log", Stdin: c.name == "echo", Linux: &cri.LinuxContainerConfig{}}); err != nil {
			return nil, err
		}
	}
	l.log = filepath.Join(pod.LogDirectory, "echo.log")
	for _, open := range []func(context.Context) (*session, error){
		func(ctx context.Context) (*session, error) {
			return l.openPipe(ctx, "exec 1", "exec", "-i", l.idle, "cat")
		},
		func(ctx context.Context) (*session, error) {
			return l.openPipe(ctx, "exec 2", "exec", "-i", l.idle, "cat")
		},
		func(ctx context.Context) (*session, error) {
			return l.openTerminal(ctx, "exec with a terminal", "exec", "-it", l.idle, "sh", "-c", "stty raw -echo; echo ready; exec cat")
		},
		func(ctx context.Context) (*session, error) { return l.openPipe(ctx, "attach", "attach", "-i", l.echo) },
	} {
		s, err := open(ctx)
		if err != nil {
			return nil, err
		}
		l.sessions = append(l.sessions, s)
	}
	return l, nil
}

func (l *load) pod(name string) *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "load", Uid: name},
		LogDirectory: filepath.Join(l.n.Dir, "tmp", "load-"+name), Linux: &cri.LinuxPodSandboxConfig{}}
}

func (l *load) container(ctx context.Context, pod string, config *cri.PodSandboxConfig, c *cri.ContainerConfig) (string, error) {
	r, err := l.n.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: pod, SandboxConfig: config, Config: c})
	if err != nil {
		return "", err
	}
	_, err = l.n.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: r.ContainerId})
	return r.ContainerId, err
}

// run is at work until end is called, or something fails.
func (l *load) run(ctx context.Context) error {
	var g errgroup.Group
	for _, s := range l.sessions {
		g.Go(func() error {
			if err := s.talk(ctx, l.ended); err != nil {
				return l.fails(fmt.Errorf("%s, after %d lines: %w", s.name, s.lines, err))
			}
			return nil
		})
	}
	for range 2 {
		g.Go(func() error { return l.fails(l.repeat(ctx, l.exec)) })
	}
	g.Go(func() error { return l.fails(l.repeat(ctx, l.onePod)) })
	err := g.Wait()
	for _, s := range l.sessions {
		err = errors.Join(err, s.close())
	}
	return err
}

func (l *load) end() { l.once.Do(func() { close(l.ended) }) }

// fails ends the others with the first that fails.
func (l *load) fails(err error) error {
	if err != nil {
		l.end()
	}
	return err
}

func (l *load) repeat(ctx context.Context, do func(ctx context.Context, n int) error) error {
	for n := 0; ctx.Err() == nil; n++ {
		select {
		case <-l.ended:
			return nil
		default:
		}
		one, cancel := context.WithTimeout(ctx, 2*time.Minute)
		err := do(one, n)
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *load) exec(ctx context.Context, n int) error {
	began, want := time.Now(), fmt.Sprintf("number %d\n", n)
	r, err := l.n.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: l.idle, Cmd: []string{"echo", strings.TrimSpace(want)}, Timeout: 60})
	if err != nil || r.ExitCode != 0 || string(r.Stdout) != want {
		return fmt.Errorf("exec: %v: %w", r, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.execs++
	l.longest = max(l.longest, time.Since(began))
	return nil
}

// onePod is one pod's life.
func (l *load) onePod(ctx context.Context, n int) error {
	began, config := time.Now(), l.pod(fmt.Sprint("pod-", n))
	p, err := l.n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		return fmt.Errorf("run: %w", err)
	}
	if _, err := l.container(ctx, p.PodSandboxId, config, &cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: "c"}, Image: busybox, LogPath: "c.log",
		Command: []string{"sh", "-c", "echo begun; exec sleep 1000"}, Linux: &cri.LinuxContainerConfig{}}); err != nil {
		return fmt.Errorf("container: %w", err)
	}
	if _, err := l.n.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.PodSandboxId}); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	if _, err := l.n.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.PodSandboxId}); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	b, err := os.ReadFile(filepath.Join(config.LogDirectory, "c.log"))
	if text := string(b); err != nil || len(b) > 0 && !strings.HasSuffix(text, " stdout F begun\n") { // it may have been killed before
		return fmt.Errorf("log %q: %w", b, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pods++
	l.life = max(l.life, time.Since(began))
	return os.RemoveAll(config.LogDirectory)
}

// report prints the figures and compares the log of what the attachment sent.
func (l *load) report() error {
	for _, s := range l.sessions {
		fmt.Printf("%s: %d lines there and back, longest %v\n", s.name, s.lines, round(s.longest))
	}
	fmt.Printf("%d execs, longest %v; %d pods, longest life %v\n", l.execs, round(l.longest), l.pods, round(l.life))
	attached := l.sessions[len(l.sessions)-1]
	b, err := os.ReadFile(l.log)
	if err != nil {
		return err
	}
	n := 0
	for record := range strings.Lines(string(b)) {
		f := strings.SplitN(record, " ", 4)
		if len(f) != 4 || f[3] != attached.line(n) {
			return fmt.Errorf("%s: record %.80q instead of line %d", filepath.Base(l.log), record, n)
		}
		n++
	}
	if n != attached.lines {
		return fmt.Errorf("%s has %d lines, %d were sent", filepath.Base(l.log), n, attached.lines)
	}
	return nil
}
