package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// afterwards are behaviours of the whole: what kubelet says of its pods, and how all of it ends.
var afterwards = []promise{
	{"exec with stdin and exit status, and port-forward, through kubelet", throughKubelet},
	{"/stats/summary: pods and containers with cpu and memory", func(r *run) error { return r.summary(false) }},
	{"/metrics/resource names the containers", func(r *run) error { return r.metric("/metrics/resource", memoryMetric) }},
	{"with the gate PodAndContainerStatsFromCRI: network and processes in /stats/summary, names in /metrics/cadvisor", statsFromCRI},
	{"with the gate EventedPLEG: a pod is Ready, its exit is seen", eventedPLEG},
	{"images: unused ones are removed, used ones stay", collectGarbage},
	{"pods removed: containers, sandboxes, cgroups and volumes gone", removal},
	{"kubelet's log has no complaints about the runtime", complaints},
}

// dial opens a streaming connection to kubelet.
func dial(path, protocol string) (httpstream.Connection, error) {
	tripper, err := spdy.NewRoundTripper(insecure)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequest(http.MethodPost, secure+path, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set(httpstream.HeaderProtocolVersion, protocol)
	response, err := (&http.Client{Transport: tripper}).Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return tripper.NewConnection(response)
}

func stream(c httpstream.Connection, kind string, more ...string) (httpstream.Stream, error) {
	h := http.Header{}
	h.Set("streamType", kind)
	for i := 0; i < len(more); i += 2 {
		h.Set(more[i], more[i+1])
	}
	return c.CreateStream(h)
}

func throughKubelet(r *run) error { return errors.Join(execThrough(), forwardThrough()) }

func execThrough() error {
	query := url.Values{"input": {"1"}, "output": {"1"}, "command": {"sh", "-c", "cat; exit 6"}}
	conn, err := dial("/exec/default/web-"+nodeName+"/web?"+query.Encode(), "v4.channel.k8s.io")
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	defer conn.Close()
	status, err1 := stream(conn, "error")
	in, err2 := stream(conn, "stdin")
	out, err3 := stream(conn, "stdout")
	if err := errors.Join(err1, err2, err3); err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	sent := strings.Repeat("a line of a large input\n", 40000)
	go func() {
		_, _ = io.WriteString(in, sent)
		_ = in.Close()
	}() // ends with the connection
	got, err := io.ReadAll(out)
	if err != nil || string(got) != sent {
		return fmt.Errorf("exec: %d bytes of %d came back: %w", len(got), len(sent), err)
	}
	end, err := io.ReadAll(status)
	if err != nil || !regexp.MustCompile(`"reason":"ExitCode","message":"6"`).Match(end) {
		return fmt.Errorf("exec: exit status is %q: %w", end, err)
	}
	return nil
}

func forwardThrough() error {
	conn, err := dial("/portForward/default/web-"+nodeName, "portforward.k8s.io")
	if err != nil {
		return fmt.Errorf("port-forward: %w", err)
	}
	defer conn.Close()
	failure, err1 := stream(conn, "error", "port", "80", "requestID", "0")
	data, err2 := stream(conn, "data", "port", "80", "requestID", "0")
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("port-forward: %w", err)
	}
	_ = failure.Close() // this side writes nothing to it
	if _, err := io.WriteString(data, "GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n"); err != nil {
		return fmt.Errorf("port-forward: %w", err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(data), nil)
	if err != nil {
		text, _ := io.ReadAll(failure)
		return fmt.Errorf("port-forward: %w %s", err, text)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err == nil && !strings.Contains(string(b), "Welcome to nginx") {
		err = fmt.Errorf("port-forward: the page is %q", b)
	}
	return err
}

type usage struct {
	CPU    struct{ UsageCoreNanoSeconds, UsageNanoCores uint64 }
	Memory struct{ WorkingSetBytes, RssBytes, UsageBytes uint64 }
}

type summaryStats struct {
	Pods []struct {
		PodRef struct{ Name string }
		usage
		Network struct{ RxBytes, TxBytes *uint64 }
		Volume  []struct {
			Name      string
			UsedBytes uint64
		}
		ProcessStats struct {
			ProcessCount uint64 `json:"process_count"`
		} `json:"process_stats"`
		Containers []struct {
			Name string
			usage
			Rootfs, Logs struct{ UsedBytes *uint64 }
		}
	}
}

// summary checks kubelet's statistics. Without the gate it takes a pod's network and processes from cadvisor, which finds
// them for containerd and CRI-O only.
func (r *run) summary(gate bool) error {
	return r.until(soon, func() error {
		b, err := r.get("/stats/summary")
		if err != nil {
			return err
		}
		var s summaryStats
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		seen := map[string]bool{}
		for _, p := range s.Pods {
			name := strings.TrimSuffix(p.PodRef.Name, "-"+nodeName)
			if !slices.Contains(everlasting, name) {
				continue
			}
			if p.CPU.UsageCoreNanoSeconds == 0 || p.Memory.WorkingSetBytes == 0 || gate && p.ProcessStats.ProcessCount == 0 {
				return fmt.Errorf("%s: %+v", name, p)
			}
			if gate && name != "hostnet" && (p.Network.RxBytes == nil || p.Network.TxBytes == nil) {
				return fmt.Errorf("%s has no network statistics", name)
			}
			for _, c := range p.Containers {
				if c.CPU.UsageCoreNanoSeconds == 0 || c.Memory.WorkingSetBytes == 0 || c.Rootfs.UsedBytes == nil || c.Logs.UsedBytes == nil {
					return fmt.Errorf("%s: %s: %+v", name, c.Name, c)
				}
				seen[name+"/"+c.Name] = true
			}
		}
		want, err := r.lasting()
		if err != nil {
			return err
		}
		for c := range want {
			if !seen[c] && !strings.HasPrefix(c, "gates/") {
				return fmt.Errorf("no statistics of %s", c)
			}
		}
		return nil
	})
}

const (
	memoryMetric = `container_memory_working_set_bytes\{container="web",.*pod="web-`
	cpuMetric    = `container_cpu_usage_seconds_total\{(.*,)?container="web",.*pod="web-`
)

func (r *run) metric(path, want string) error {
	return r.until(soon, func() error {
		m, err := r.get(path)
		if err == nil && !regexp.MustCompile(want).Match(m) {
			err = fmt.Errorf("%s: nothing matches %s", path, want)
		}
		return err
	})
}

// gated starts kubelet again with a feature gate for the time of a check.
func (r *run) gated(gate string, check func() error) error {
	r.gates = gate + ": true"
	defer func() { r.gates = "" }()
	if err := errors.Join(r.kubelet.stop(syscall.SIGTERM), r.kubelet.start(r.ctx)); err != nil {
		return err
	}
	return check()
}

func statsFromCRI(r *run) error {
	return r.gated("PodAndContainerStatsFromCRI", func() error {
		return errors.Join(r.summary(true), r.metric("/metrics/cadvisor", cpuMetric))
	})
}

func eventedPLEG(r *run) error {
	return r.gated("EventedPLEG", func() error {
		if err := r.place("late"); err != nil {
			return err
		}
		if _, err := r.running("late", "late"); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(r.share, "stop-late"), nil, 0o644); err != nil {
			return err
		}
		return r.until(soon, func() error {
			p, err := r.pod("late")
			if err == nil && p.Status.Phase != "Succeeded" {
				err = fmt.Errorf("the pod has not succeeded: %v", p)
			}
			return err
		})
	})
}

// removal ends all pods. kubelet removes their sandboxes once a minute.
func removal(r *run) error {
	names, err := filepath.Glob(filepath.Join(r.manifests, "*.yaml"))
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := os.Remove(n); err != nil {
			return err
		}
	}
	return r.until(3*time.Minute, func() error {
		list, err := r.pods()
		if err != nil {
			return err
		}
		if len(list) > 0 {
			return fmt.Errorf("kubelet still lists %d pods", len(list))
		}
		pods, err1 := r.Runtime.ListPodSandbox(r.ctx, &cri.ListPodSandboxRequest{})
		containers, err2 := r.Runtime.ListContainers(r.ctx, &cri.ListContainersRequest{})
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if len(pods.Items)+len(containers.Containers) > 0 {
			return fmt.Errorf("%d sandboxes and %d containers are left", len(pods.Items), len(containers.Containers))
		}
		dirs, _ := filepath.Glob("/var/lib/kubelet/pods/*")
		logs, _ := filepath.Glob("/var/log/containers/*")
		if len(dirs)+len(logs) > 0 {
			return fmt.Errorf("kubelet has not removed %v %v", dirs, logs)
		}
		if left := r.left(); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
}
