package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// kubelet is the kubelet of a ground. It can be ended and started again; each start has a log of its own.
type kubelet struct {
	binary string
	g      *ground
	gates  string // feature gates, for the next start
	evict  string // further thresholds of eviction, for the next start

	process *exec.Cmd
	exited  chan struct{}
	began   time.Time // of the last start
	starts  int

	mu     sync.Mutex
	cached []pod
	read   time.Time
}

func newKubelet(binary string, g *ground) *kubelet { return &kubelet{binary: binary, g: g} }

const (
	nodeName = "crinode"
	secure   = "https://127.0.0.1:10250"
)

// The cgroup driver is left to what cri-server says.
const configuration = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 127.0.0.1
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupRoot: %q
containerLogMaxFiles: 3
containerLogMaxSize: 64Ki
containerLogMonitorInterval: 3s
containerRuntimeEndpoint: unix://%s
crashLoopBackOff: {maxContainerRestartPeriod: 5s}
evictionHard: {memory.available: 1Mi%s}
failCgroupV1: false
failSwapOn: false
featureGates: {%s}
fileCheckFrequency: 1s
imageGCHighThresholdPercent: 100
imageMinimumGCAge: 1s
resolvConf: ""
staticPodPath: %s
volumePluginDir: /var/lib/kubelet/volume-plugins
`

func (k *kubelet) start(ctx context.Context) error {
	k.starts++
	file := filepath.Join(k.g.Dir, "kubelet.yaml")
	text := fmt.Sprintf(configuration, k.g.cgroup, k.g.Socket, k.evict, k.gates, k.g.manifests)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return err
	}
	log, err := os.Create(k.log())
	if err != nil {
		return err
	}
	defer log.Close()
	c := exec.Command(k.binary, "--config", file, "--hostname-override", nodeName, "--node-ip", address, "-v", "2")
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL} // ^C is for the test
	k.began = time.Now()
	if err := c.Start(); err != nil {
		return fmt.Errorf("kubelet: %w", err)
	}
	k.process, k.exited = c, make(chan struct{})
	go func(done chan struct{}) { _ = c.Wait(); close(done) }(k.exited)
	return k.up(ctx)
}

// up waits until kubelet answers and knows its pods.
func (k *kubelet) up(ctx context.Context) error {
	for deadline := time.Now().Add(60 * time.Second); ; {
		_, err := k.get("/pods")
		if err == nil {
			return nil
		}
		select {
		case <-k.exited:
			return fmt.Errorf("kubelet ended at once (%s):\n%s", k.process.ProcessState, k.tail())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kubelet doesn't answer: %w\n%s", err, k.tail())
		}
	}
}

// stop ends kubelet; its pods stay.
func (k *kubelet) stop(s os.Signal) error {
	if err := k.process.Process.Signal(s); err != nil {
		return fmt.Errorf("kubelet: %w", err)
	}
	select {
	case <-k.exited:
		return nil
	case <-time.After(20 * time.Second):
		_ = k.process.Process.Kill()
		<-k.exited
		return fmt.Errorf("kubelet did not end within 20 s of %v", s)
	}
}

func (k *kubelet) end() error {
	if k.process == nil || k.process.Process == nil {
		return nil
	}
	select {
	case <-k.exited:
		return nil
	default:
		return k.stop(syscall.SIGTERM)
	}
}

func (k *kubelet) log() string {
	return filepath.Join(k.g.Dir, fmt.Sprintf("kubelet-%d.log", k.starts))
}

func (k *kubelet) tail() string {
	b, _ := os.ReadFile(k.log())
	lines := strings.Split(string(b), "\n")
	return strings.Join(lines[max(0, len(lines)-30):], "\n")
}

func (k *kubelet) version() string {
	out, _ := exec.Command(k.binary, "--version").Output()
	return strings.TrimPrefix(strings.TrimSpace(string(out)), "Kubernetes ")
}

// insecure: kubelet signs a certificate for itself.
var insecure = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // on our own loopback

var client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: insecure}}

// get asks kubelet's API.
func (k *kubelet) get(path string) ([]byte, error) {
	q, err := client.Get(secure + path)
	if err != nil {
		return nil, err
	}
	defer q.Body.Close()
	b, err := io.ReadAll(q.Body)
	if err == nil && q.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %.200s", path, q.Status, bytes.TrimSpace(b))
	}
	return b, err
}

// pod is what is read of a pod as kubelet's API shows it.
type pod struct {
	Metadata struct{ Name, UID string }
	Spec     struct{ RestartPolicy string }
	Status   struct {
		Phase, Reason, PodIP, HostIP string
		Conditions                   []struct{ Type, Status, Reason string }
		ContainerStatuses            []container
		InitContainerStatuses        []container
	}
}

type container struct {
	Name, ContainerID, ImageID string
	Ready, Started             bool
	RestartCount               int
	State, LastState           state
}

type state struct {
	Waiting    *struct{ Reason, Message string }
	Running    *struct{ StartedAt time.Time }
	Terminated *struct {
		ExitCode, Signal      int
		Reason, Message       string
		StartedAt, FinishedAt time.Time
		ContainerID           string
	}
}

func (s state) String() string { b, _ := json.Marshal(s); return string(b) }

// id is the container's in CRI.
func (c container) id() string { _, id, _ := strings.Cut(c.ContainerID, "://"); return id }

func (p pod) is(condition string) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == condition {
			return c.Status == "True"
		}
	}
	return false
}

func (p pod) String() string {
	text := p.Status.Phase
	for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		text += fmt.Sprintf("; %s: ready %v, %d restarts, %v", c.Name, c.Ready, c.RestartCount, c.State)
	}
	return text
}

// container returns the one of that name; it is zero when kubelet has no status of it yet.
func (p pod) container(name string) container {
	for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		if c.Name == name {
			return c
		}
	}
	return container{}
}

// pods lists the pods as they were at most a fifth of a second ago.
func (k *kubelet) pods() ([]pod, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.read) < 200*time.Millisecond {
		return k.cached, nil
	}
	b, err := k.get("/pods")
	if err != nil {
		return nil, err
	}
	var list struct{ Items []pod }
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, err
	}
	k.cached, k.read = list.Items, time.Now()
	return k.cached, nil
}

// forget has pods ask kubelet the next time.
func (k *kubelet) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.read = time.Time{}
}

var errNoPod = errors.New("kubelet doesn't list the pod")

// pod returns the pod of a manifest.
func (k *kubelet) pod(name string) (pod, error) {
	list, err := k.pods()
	if err != nil {
		return pod{}, err
	}
	for _, p := range list {
		if p.Metadata.Name == name+"-"+nodeName {
			return p, nil
		}
	}
	return pod{}, errNoPod
}
