package testnode

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
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
	"github.com/seed-9a14075a/cri-server/test/images"
)

// RegistryAddress is where the node's registry listens, on the node's own loopback.
const RegistryAddress = "127.0.0.1:5055"

// Options say what the node runs. The zero value runs bin/cri-server of the repository.
type Options struct {
	Repo    string // the repository's root; "" finds it upwards from the working directory
	Dir     string // where the node keeps its files; "" makes a temporary directory that Stop removes
	Command string // a shell command to run instead of cri-server; sees NODE_DIR, NODE_SOCKET, NODE_CERTS
	Config  string // further configuration for cri-server, as a drop-in file
	Cgroup  string // parent of pods that name none; "" makes one that Stop removes
	Big     bool   // serve bench/big:200m too
	Faults  bool   // run the programs that have fault points (make faults), with FaultDir as the directory of their plans
}

// Node is a running node. Its methods are not for concurrent use, but for the clients.
type Node struct {
	Runtime cri.RuntimeServiceClient
	Image   cri.ImageServiceClient
	Socket  string // the CRI socket
	Dir     string // holds root/, certs.d/, tmp/, server.log
	State   string // cri-server's --state
	Repo    string

	opts     Options
	temp     bool
	server   *exec.Cmd
	exited   chan struct{} // closed when server was waited for
	conn     *grpc.ClientConn
	registry *http.Server
}

// Start brings up the registry and the server and waits until the server says that it is ready.
func Start(ctx context.Context, o Options) (*Node, error) {
	n := &Node{opts: o, Dir: o.Dir, Repo: o.Repo, State: "/run/cri-server", Socket: "/run/cri-server/cri.sock"}
	if n.Repo == "" {
		root, err := findRepo()
		if err != nil {
			return nil, err
		}
		n.Repo = root
	}
	if n.opts.Cgroup == "" {
		n.opts.Cgroup = CgroupParent(fmt.Sprintf("/cri-node-%d", os.Getpid()), "")
	}
	if n.Dir == "" {
		d, err := os.MkdirTemp("", "cri-node-")
		if err != nil {
			return nil, fmt.Errorf("test node: %w", err)
		}
		n.Dir, n.temp = d, true
	}
	err := n.start(ctx)
	if err != nil {
		err = errors.Join(err, n.Stop())
		return nil, err
	}
	return n, nil
}

func (n *Node) start(ctx context.Context) error {
	for _, d := range []string{"tmp", "root", "faults"} {
		if err := os.MkdirAll(filepath.Join(n.Dir, d), 0o755); err != nil {
			return fmt.Errorf("test node: %w", err)
		}
	}
	if err := n.mirrors(); err != nil {
		return err
	}
	if err := n.writeConfig(); err != nil {
		return err
	}
	if err := n.serveImages(); err != nil {
		return err
	}
	conn, err := grpc.NewClient("unix://"+n.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)),
		// A restarted server is tried again at once.
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second,
			Backoff: backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.2, MaxDelay: 20 * time.Millisecond}}))
	if err != nil {
		return fmt.Errorf("test node: dial: %w", err)
	}
	n.conn, n.Runtime, n.Image = conn, cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	return n.StartServer(ctx)
}

func findRepo() (string, error) {
	d, err := os.Getwd()
	for ; err == nil && d != "/"; d = filepath.Dir(d) {
		if b, err := os.ReadFile(filepath.Join(d, "go.mod")); err == nil &&
			strings.HasPrefix(string(b), "module github.com/seed-9a14075a/cri-server\n") {
			return d, nil
		}
	}
	return "", errors.Join(errors.New("test node: not inside the repository"), err)
}

// mirrors points the registries of the test images to the node's own.
func (n *Node) mirrors() error {
	for _, host := range []string{"registry.k8s.io", "k8s.gcr.io", "gcr.io", "public.ecr.aws", RegistryAddress} {
		dir := filepath.Join(n.Dir, "certs.d", host)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("test node: mirrors: %w", err)
		}
		text := fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", "http://"+RegistryAddress, "http://"+RegistryAddress)
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644); err != nil {
			return fmt.Errorf("test node: mirrors: %w", err)
		}
	}
	return nil
}

func (n *Node) serveImages() error {
	a, err := images.Load(filepath.Join(n.Repo, ".cache", "images"), runtime.GOARCH)
	if err != nil {
		return err
	}
	r, err := images.Catalog(a, n.opts.Big)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", RegistryAddress)
	if err != nil {
		return fmt.Errorf("test node: registry: %w", err)
	}
	n.registry = &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = n.registry.Serve(l) }() // ends with Close in Stop
	return nil
}

// Log is the file that holds what the server wrote.
func (n *Node) Log() string { return filepath.Join(n.Dir, "server.log") }

// Crictl is a crictl command that talks to the node.
func (n *Node) Crictl(ctx context.Context, args ...string) *exec.Cmd {
	empty := filepath.Join(n.Dir, "crictl.yaml") // else crictl looks for /etc/crictl.yaml and complains
	_ = os.WriteFile(empty, []byte("debug: false\n"), 0o644)
	endpoint := "unix://" + n.Socket
	all := append([]string{"--config", empty, "--runtime-endpoint", endpoint, "--image-endpoint", endpoint, "--timeout", "60s"}, args...)
	c := exec.CommandContext(ctx, filepath.Join(n.Repo, "bin", "crictl"), all...)
	c.Env = append(os.Environ(), "TMPDIR="+filepath.Join(n.Dir, "tmp"))
	return c
}

// ServerCommand is the command line of a cri-server for this node.
func (n *Node) ServerCommand(extra ...string) *exec.Cmd {
	if n.opts.Command != "" {
		c := exec.Command("/bin/sh", "-c", "exec "+n.opts.Command)
		c.Env = append(os.Environ(), "NODE_DIR="+n.Dir, "NODE_SOCKET="+n.Socket, "NODE_CERTS="+filepath.Join(n.Dir, "certs.d"))
		return c
	}
	c := exec.Command(n.Program("cri-server"), append([]string{"serve", "--config", n.ConfigFile()}, extra...)...)
	if n.opts.Faults {
		c.Env = append(os.Environ(), faultpoint.Variable+"="+n.FaultDir())
	}
	return c
}

// Program is the file of one of the programs that the node runs.
func (n *Node) Program(name string) string {
	if n.opts.Faults {
		return filepath.Join(n.Repo, ".cache", "faults", name)
	}
	return filepath.Join(n.Repo, "bin", name)
}

// FaultDir is where the node's programs look for their plans: see package faultpoint.
func (n *Node) FaultDir() string { return filepath.Join(n.Dir, "faults") }

// ConfigFile is the configuration of the node's server.
func (n *Node) ConfigFile() string { return filepath.Join(n.Dir, "config.toml") }

func (n *Node) writeConfig() error {
	text := fmt.Sprintf(`socket = %q
state = %q
root = %q
log_level = "debug"
monitor_path = %q
default_cgroup_parent = %q

[network]
mode = "embedded"

[image]
certs_dir = %q
`, n.Socket, n.State, filepath.Join(n.Dir, "root"), n.Program("cri-monitor"), n.opts.Cgroup, filepath.Join(n.Dir, "certs.d"))
	if err := os.WriteFile(n.ConfigFile(), []byte(text), 0o644); err != nil {
		return fmt.Errorf("test node: %w", err)
	}
	if n.opts.Config == "" {
		return nil
	}
	drop := n.ConfigFile() + ".d"
	if err := os.MkdirAll(drop, 0o755); err != nil {
		return fmt.Errorf("test node: %w", err)
	}
	return os.WriteFile(filepath.Join(drop, "50-test.toml"), []byte(n.opts.Config), 0o644)
}

// StartServer starts the server and waits until it is ready.
func (n *Node) StartServer(ctx context.Context) error {
	if err := n.LaunchServer(); err != nil {
		return err
	}
	return n.Ready(ctx)
}

// LaunchServer starts the server and does not wait for it.
func (n *Node) LaunchServer() error {
	log, err := os.OpenFile(n.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("test node: %w", err)
	}
	defer log.Close()
	c := n.ServerCommand()
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // ^C is for the test, which then stops the server
	if err := c.Start(); err != nil {
		return fmt.Errorf("test node: server: %w", err)
	}
	programs.Store(c.Process.Pid, true)
	n.server, n.exited = c, make(chan struct{})
	go func(done chan struct{}) { _ = c.Wait(); programs.Delete(c.Process.Pid); close(done) }(n.exited)
	return nil
}

// Ready waits until the server says that it is ready.
func (n *Node) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, testns.Patience(time.Minute))
	defer cancel()
	last := "no answer"
	for {
		r, err := n.Runtime.Status(ctx, &cri.StatusRequest{})
		if err == nil {
			last = ""
			for _, c := range r.GetStatus().GetConditions() {
				if !c.Status && (c.Type == "RuntimeReady" || c.Type == "NetworkReady") {
					last += c.Type + " is false: " + c.Reason + " " + c.Message + "; "
				}
			}
			if last == "" {
				return nil
			}
		} else {
			last = err.Error()
		}
		select {
		case <-n.exited:
			return fmt.Errorf("test node: the server ended at once (%s):\n%s", n.server.ProcessState, n.LogTail())
		case <-ctx.Done():
			return fmt.Errorf("test node: the server is not ready: %s\n%s", last, n.LogTail())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// LogTail is the end of the server's log, without what is said of every call, and that of cri-monitor's.
func (n *Node) LogTail() string {
	b, _ := os.ReadFile(n.Log())
	lines := slices.DeleteFunc(strings.Split(string(b), "\n"), func(l string) bool { return strings.Contains(l, " level=DEBUG ") })
	lines = lines[max(0, len(lines)-40):]
	if m, err := os.ReadFile(filepath.Join(n.State, "monitor", "monitor.log")); err == nil {
		of := strings.Split(strings.TrimSpace(string(m)), "\n")
		lines = append(append(lines, "== cri-monitor"), of[max(0, len(of)-10):]...)
	}
	return strings.Join(lines, "\n")
}

// ServerExited is closed when the server has ended.
func (n *Node) ServerExited() <-chan struct{} { return n.exited }

// ServerPid is the server's process id.
func (n *Node) ServerPid() int { return n.server.Process.Pid }

// ServerEnded says that the server is not running though nobody stopped it.
func (n *Node) ServerEnded(ctx context.Context) bool {
	if _, err := n.Runtime.Version(ctx, &cri.VersionRequest{}); err == nil {
		return false
	}
	select {
	case <-n.exited:
		return true
	case <-time.After(5 * time.Second): // a crashing process closes its socket before it has ended
		return false
	}
}

// AwaitDeath waits for the server to end by itself, as it does at a fault point.
func (n *Node) AwaitDeath(ctx context.Context) error {
	select {
	case <-n.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("test node: the server lives on: %w", ctx.Err())
	}
}

// KillServer ends the server with SIGKILL, as a crash would.
func (n *Node) KillServer() error {
	if err := n.server.Process.Kill(); err != nil {
		return fmt.Errorf("test node: kill: %w", err)
	}
	<-n.exited
	return nil
}
