package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// peer is a runtime under test.
type peer struct {
	name    string
	durable string
	dir     string
	cmd     *exec.Cmd
	conn    *grpc.ClientConn
	images  cri.ImageServiceClient
}

// peers describes the runtimes; none runs yet.
func peers(o options) ([]*peer, error) {
	out := []*peer{{name: "cri-server", durable: "yes", dir: filepath.Join(o.dir, "cri-server")}}
	p := out[0]
	conf := filepath.Join(p.dir, "config.toml")
	p.cmd = exec.Command(o.criServer, "serve", "--config", conf)
	text := fmt.Sprintf("socket = %q\nstate = %q\nroot = %q\n[network]\nmode = \"embedded\"\n[image]\ncerts_dir = %q\n",
		p.socket(), filepath.Join(p.dir, "state"), filepath.Join(p.dir, "root"), filepath.Join(p.dir, "certs.d"))
	if err := writeConfig(conf, text); err != nil {
		return nil, err
	}
	containerds, err := containerdPeers(o)
	if err != nil {
		return nil, err
	}
	out = append(out, containerds...)
	if o.crio == "" {
		return out, nil
	}
	c, err := crioPeer(o)
	return append(out, c), err
}

func containerdPeers(o options) (out []*peer, err error) {
	if o.containerd == "" {
		return nil, nil
	}
	for _, v := range []struct{ name, durable, extra string }{
		{"containerd", "no (default)", ""},
		// The only durable way that it has is off the default path.
		{"containerd-sync", "yes", "  use_local_image_pull = true\n  image_pull_with_sync_fs = true\n"},
	} {
		p := &peer{name: v.name, durable: v.durable, dir: filepath.Join(o.dir, v.name)}
		conf := filepath.Join(p.dir, "config.toml")
		p.cmd = exec.Command(o.containerd, "--config", conf, "--log-level", "warn")
		text := fmt.Sprintf("version = 3\nroot = %q\nstate = %q\n[grpc]\n  address = %q\n[plugins.'io.containerd.cri.v1.images']\n  snapshotter = 'overlayfs'\n%s",
			filepath.Join(p.dir, "root"), filepath.Join(p.dir, "state"), p.socket(), v.extra)
		if err := writeConfig(conf, text); err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func writeConfig(name, text string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, []byte(text), 0o644)
}

func (p *peer) socket() string { return filepath.Join(p.dir, "s") }

// start runs the daemon and waits until it answers.
func (p *peer) start(ctx context.Context) error {
	log, err := os.Create(filepath.Join(p.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	if p.conn, err = grpc.NewClient("unix://"+p.socket(), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		return err
	}
	p.images = cri.NewImageServiceClient(p.conn)
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		if _, err = p.images.ImageFsInfo(ctx, &cri.ImageFsInfoRequest{}); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			b, _ := os.ReadFile(log.Name())
			return fmt.Errorf("%s does not answer: %w\n%s", p.name, err, b[max(0, len(b)-4000):])
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p *peer) stop() {
	if p.conn != nil {
		_ = p.conn.Close()
	}
	if p.cmd.Process != nil {
		_ = p.cmd.Process.Signal(unix.SIGTERM)
		kill := time.AfterFunc(10*time.Second, func() { _ = p.cmd.Process.Kill() })
		_ = p.cmd.Wait()
		kill.Stop()
	}
}

// sample is one pull.
type sample struct {
	wall, cpu time.Duration
	rss       int64 // bytes, peak
}

// pull measures one pull of ref.
func (p *peer) pull(ctx context.Context, ref string) (sample, error) {
	spec := &cri.ImageSpec{Image: ref}
	if _, err := p.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: spec}); err != nil {
		return sample{}, fmt.Errorf("%s: remove: %w", p.name, err)
	}
	if err := syncfs(p.dir); err != nil {
		return sample{}, err
	}
	pid := p.cmd.Process.Pid
	// 5 resets the peak, proc_pid_clear_refs(5).
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		return sample{}, err
	}
	before, err := cpuOf(pid)
	if err != nil {
		return sample{}, err
	}
	start := time.Now()
	_, err = p.images.PullImage(ctx, &cri.PullImageRequest{Image: spec})
	wall := time.Since(start)
	if err != nil {
		return sample{}, fmt.Errorf("%s: pull: %w", p.name, err)
	}
	after, err := cpuOf(pid)
	if err != nil {
		return sample{}, err
	}
	rss, err := peakOf(pid)
	return sample{wall: wall, cpu: after - before, rss: rss}, err
}

// syncfs writes out what is dirty on the runtimes' file system, and on no other: the machine may be busy.
func syncfs(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// cpuOf is the time of a process and the children it waited for: utime to cstime of proc_pid_stat(5), in ticks of 10 ms.
func cpuOf(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 15 {
		return 0, errors.New("short /proc/PID/stat")
	}
	var ticks int64
	for _, s := range f[11:15] {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// peakOf is VmHWM, proc_pid_status(5).
func peakOf(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return n << 10, err
		}
	}
	return 0, errors.New("no VmHWM")
}
