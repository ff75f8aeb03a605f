package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

const (
	registryAddress = testnode.RegistryAddress
	image           = "registry.k8s.io/" + images.Busybox
	pauseImage      = "registry.k8s.io/pause:bench"
)

// serve is the registry: the test images, and a sandbox image that holds what Kubernetes' does.
func serve(o options) (*http.Server, error) {
	a, err := images.Load(filepath.Join(o.repo, ".cache", "images"), runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	r, err := images.Catalog(a, false)
	if err != nil {
		return nil, err
	}
	body, err := os.ReadFile(o.bin("peers/pause"))
	if err != nil {
		return nil, err
	}
	layer, err := images.NewLayer([]images.File{{Path: "pause", Mode: 0o755, Body: body}}, false)
	if err != nil {
		return nil, err
	}
	pause, err := a.NewImage(images.OCI, images.RunConfig{Entrypoint: []string{"/pause"}}, layer)
	if err != nil {
		return nil, err
	}
	r.Add("pause", "bench", pause)
	l, err := net.Listen("tcp", registryAddress)
	if err != nil {
		return nil, err
	}
	s := &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.Serve(l) }() // until Close
	return s, nil
}

// daemon is one runtime, running or not.
type daemon struct {
	target
	o      options
	dir    string // configuration and log
	root   string // what it keeps
	state  string // on tmpfs
	socket string
	certs  string
	cni    string
	group  *group

	cmd    *exec.Cmd
	exited chan struct{}
	conn   *grpc.ClientConn
	rt     cri.RuntimeServiceClient
	img    cri.ImageServiceClient
	pods   int // made so far, for their names
}

func newDaemon(o options, t target, number int) (*daemon, error) {
	name := fmt.Sprintf("t%d", number)
	d := &daemon{target: t, o: o, dir: filepath.Join(o.dir, name), state: filepath.Join("/run/cribench", name)}
	d.root, d.certs, d.cni = filepath.Join(d.dir, "root"), filepath.Join(d.dir, "certs.d"), filepath.Join(d.dir, "cni")
	d.socket = filepath.Join(d.state, "cri.sock")
	hosts := filepath.Join(d.certs, "registry.k8s.io")
	for _, dir := range []string{d.root, d.cni, hosts, d.state, filepath.Join(d.dir, "logs")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	text := fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", "http://"+registryAddress, "http://"+registryAddress)
	if err := os.WriteFile(filepath.Join(hosts, "hosts.toml"), []byte(text), 0o644); err != nil {
		return nil, err
	}
	text = fmt.Sprintf(conflist, number, filepath.Join(d.dir, "ipam"), 88+number)
	if err := os.WriteFile(filepath.Join(d.cni, "10-bench.conflist"), []byte(text), 0o644); err != nil {
		return nil, err
	}
	var err error
	d.group, err = o.group(name)
	return d, err
}

// start runs the daemon in its cgroup and returns when it is ready, with how long that took.
func (d *daemon) start(ctx context.Context) (time.Duration, error) {
	c, err := d.target.daemon(d)
	if err != nil {
		return 0, err
	}
	log, err := os.OpenFile(filepath.Join(d.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	sh := d.group.enter(c)
	sh.Env = c.Env
	if sh.Env == nil {
		sh.Env = os.Environ()
	}
	sh.Env = append(sh.Env, "PATH="+d.o.bin("peers")+":"+os.Getenv("PATH"))
	sh.Stdout, sh.Stderr = log, log
	sh.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // ^C is for the bench, which stops the daemon
	begin := time.Now()
	if err := sh.Start(); err != nil {
		return 0, err
	}
	d.cmd, d.exited = sh, make(chan struct{})
	go func(done chan struct{}) { _ = sh.Wait(); close(done) }(d.exited)
	if err := d.ready(ctx, 0); err != nil {
		return 0, err
	}
	return time.Since(begin), nil
}

// ready waits until the daemon says that it is ready and lists so many ready pods.
func (d *daemon) ready(ctx context.Context, pods int) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	for {
		err := d.answers(ctx, pods)
		if err == nil {
			return nil
		}
		select {
		case <-d.exited:
			return fmt.Errorf("%s ended at once: %s", d.name, d.logTail())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w\n%s", d.name, err, d.logTail())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// answers dials anew each time, so that a client's backoff doesn't hide the moment.
func (d *daemon) answers(ctx context.Context, pods int) error {
	c, err := net.Dial("unix", d.socket)
	if err != nil {
		return err
	}
	_ = c.Close()
	if d.conn != nil {
		_ = d.conn.Close()
	}
	d.conn, err = grpc.NewClient("unix://"+d.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return err
	}
	d.rt, d.img = cri.NewRuntimeServiceClient(d.conn), cri.NewImageServiceClient(d.conn)
	s, err := d.rt.Status(ctx, &cri.StatusRequest{})
	if err != nil {
		return err
	}
	for _, c := range s.GetStatus().GetConditions() {
		if !c.Status && (c.Type == "RuntimeReady" || c.Type == "NetworkReady") {
			return fmt.Errorf("%s: %s", c.Type, c.Message)
		}
	}
	l, err := d.rt.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{
		State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}}})
	if err == nil && len(l.Items) < pods {
		err = fmt.Errorf("%d of %d pods are ready", len(l.Items), pods)
	}
	return err
}

func (d *daemon) logTail() string {
	b, _ := os.ReadFile(filepath.Join(d.dir, "log"))
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// pid is the daemon's.
func (d *daemon) pid() int { return d.cmd.Process.Pid }

// terminate ends the daemon and leaves its pods.
func (d *daemon) terminate() error {
	if d.cmd == nil {
		return nil
	}
	_ = d.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-d.exited:
		return nil
	case <-time.After(20 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.exited
		return fmt.Errorf("%s did not end within 20 s of SIGTERM", d.name)
	}
}

// stop removes the pods, ends the daemon and what it left, and takes its cgroups and mounts away.
func (d *daemon) stop(ctx context.Context) error {
	if d.cmd == nil {
		return nil
	}
	var errs []error
	select {
	case <-d.exited:
		errs = append(errs, fmt.Errorf("%s ended: %s", d.name, d.logTail()))
	default:
		errs = append(errs, d.clean(ctx))
	}
	errs = append(errs, d.terminate())
	d.group.kill()
	if d.conn != nil {
		_ = d.conn.Close()
	}
	d.conn, d.cmd = nil, nil
	unmountBelow(d.dir)
	unmountBelow(d.state)
	return errors.Join(errs...)
}

func unmountBelow(dir string) {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			_ = unix.Unmount(f[4], unix.MNT_DETACH)
		}
	}
}
