package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/behaviour"
)

// inPods are the behaviours of single pods. They are looked at together, and each waits for its own pod.
var inPods = []promise{
	{"all pods run", podsRun},
	{"probes: http, tcp, exec and an exec that times out, failing then succeeding", probes},
	{"restart with back-off after exit", backOff},
	{"restart after a failed liveness probe", liveness},
	{"logs and their rotation", rotation},
	{"termination message: file, own path, FallbackToLogsOnError", messages},
	{"init and sidecar containers", order},
	{"volumes: emptyDir on disk and in memory, hostPath, subPath, downwardAPI, image", volumes},
	{"hostPort reachable", hostPort},
	{"hostNetwork", hostNetwork},
	{"resource limits in the cgroup and in effect", limits},
	{"OOMKilled", outOfMemory},
	{"postStart, preStop and SIGTERM at the end of a pod", graceful},
	{"SIGKILL after terminationGracePeriodSeconds", stubborn},
	{"security context: user, groups, read-only root, seccomp, capabilities, privileged", securityContext},
	{"hostname, hosts, DNS and sysctls", names},
	{"user namespace", userNamespace},
	{"shared process namespace", sharedProcesses},
}

const soon = 90 * time.Second // for what a busy machine does in a few seconds

func firstReady(r *run) error {
	return r.until(soon, func() error { return r.ready("web") })
}

func (r *run) ready(name string) error {
	p, err := r.pod(name)
	if err == nil && !p.is("Ready") {
		err = fmt.Errorf("not Ready: %v", p)
	}
	return err
}

// running waits for a container.
func (r *run) running(pod, name string) (container, error) {
	var c container
	err := r.until(soon, func() error {
		p, err := r.pod(pod)
		if err != nil {
			return err
		}
		if c = p.container(name); c.State.Running == nil {
			return fmt.Errorf("container %s does not run: %v", name, p)
		}
		return nil
	})
	return c, err
}

// inside runs a shell command in a container, and returns its output.
func (r *run) inside(pod, name, script string) (string, error) {
	c, err := r.running(pod, name)
	if err != nil {
		return "", err
	}
	a, err := r.Runtime.ExecSync(r.ctx, &cri.ExecSyncRequest{ContainerId: c.id(), Cmd: []string{"sh", "-c", script}, Timeout: 30})
	if err != nil {
		return "", fmt.Errorf("in %s of %s: %w", name, pod, err)
	}
	return string(a.Stdout) + string(a.Stderr), nil
}

// expect is a shell command in a container and a regular expression of its output.
type expect struct{ pod, container, script, output string }

func (r *run) expect(list ...expect) error {
	var errs []error
	for _, e := range list {
		out, err := r.inside(e.pod, e.container, e.script)
		if err == nil && !regexp.MustCompile(`^(?s:`+e.output+`)$`).MatchString(strings.TrimSpace(out)) {
			err = fmt.Errorf("%s: %s: %q is not %q", e.container, e.script, strings.TrimSpace(out), e.output)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// everlasting are the pods whose containers have no reason to end before somebody ends the pod.
var everlasting = []string{"web", "chatty", "volumes", "hostnet", "secure", "userns", "shared"}

func podsRun(r *run) error { return r.allReady(soon) }

func (r *run) allReady(limit time.Duration) error {
	return r.until(limit, func() error {
		for _, name := range everlasting {
			if err := r.ready(name); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	})
}

func probes(r *run) error {
	// Probes have failed when kubelet has counted that they did.
	err := r.until(soon, func() error {
		m, err := r.get("/metrics/probes")
		if err != nil {
			return err
		}
		for _, c := range []string{"http", "tcp", "exec", "slow"} {
			if !regexp.MustCompile(`prober_probe_total\{container="` + c + `",.*pod="gates-.*result="failed"`).Match(m) {
				return fmt.Errorf("no failed readiness probe of %s was counted", c)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	p, err := r.pod("gates")
	if err != nil {
		return err
	}
	for _, c := range p.Status.ContainerStatuses {
		if c.Ready || c.RestartCount > 0 {
			return fmt.Errorf("%s is ready or restarted: %v", c.Name, p)
		}
	}
	if err := os.WriteFile(filepath.Join(r.share, "open"), nil, 0o644); err != nil {
		return err
	}
	return r.until(soon, func() error { return r.ready("gates") })
}

// backOff: that a container waits is in its status for a moment only, since kubelet writes a status before it looks how long
// to wait. How long it has waited is there to stay.
func backOff(r *run) error {
	return r.until(soon, func() error {
		p, err := r.pod("crash")
		if err != nil {
			return err
		}
		c := p.container("crash")
		last, now := c.LastState.Terminated, c.State.Terminated
		if c.RestartCount < 2 || last == nil || now == nil {
			return fmt.Errorf("no second restart: %v", p)
		}
		if last.ExitCode != 3 || last.Reason != "Error" {
			return fmt.Errorf("last state is %v", c.LastState)
		}
		// In whole seconds, of the 5 that kubelet is set to.
		if pause := now.StartedAt.Sub(last.FinishedAt); pause < 4*time.Second {
			return fmt.Errorf("started again %v after its end: %v, last %v", pause, c.State, c.LastState)
		}
		return nil
	})
}

func liveness(r *run) error {
	return r.until(soon, func() error {
		p, err := r.pod("unhealthy")
		if err != nil {
			return err
		}
		c := p.container("unhealthy")
		if c.RestartCount < 1 || c.LastState.Terminated == nil {
			return fmt.Errorf("no restart: %v", p)
		}
		if code := c.LastState.Terminated.ExitCode; code != 9 {
			return fmt.Errorf("it ended with status %d, not that of its SIGTERM handler", code)
		}
		return nil
	})
}

func messages(r *run) error {
	want := map[string]string{"file": "4 Error written to the file", "logs": "5 Error its last words\n", "elsewhere": "0 Completed elsewhere"}
	return r.until(soon, func() error {
		p, err := r.pod("messages")
		if err != nil {
			return err
		}
		for name, want := range want {
			t := p.container(name).State.Terminated
			if t == nil {
				return fmt.Errorf("%s has not ended: %v", name, p)
			}
			if got := fmt.Sprintf("%d %s %s", t.ExitCode, t.Reason, t.Message); got != want {
				return fmt.Errorf("%s: %q, not %q", name, got, want)
			}
		}
		if p.Status.Phase != "Failed" {
			return fmt.Errorf("the pod's phase is %s", p.Status.Phase)
		}
		return nil
	})
}

func order(r *run) error {
	book := filepath.Join(r.share, "order")
	if _, err := r.running("order", "main"); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(book, "fall"), nil, 0o644); err != nil {
		return err
	}
	err := r.until(soon, func() error {
		p, err := r.pod("order")
		if err == nil && (p.container("sidecar").RestartCount != 1 || p.container("sidecar").State.Running == nil) {
			err = fmt.Errorf("the sidecar was not restarted: %v", p)
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(book, "end"), nil, 0o644); err != nil {
		return err
	}
	err = r.until(soon, func() error {
		p, err := r.pod("order")
		if err == nil && p.Status.Phase != "Succeeded" {
			err = fmt.Errorf("the pod has not succeeded: %v", p)
		}
		return err
	})
	if err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(book, "log"))
	got := strings.ReplaceAll(strings.TrimSpace(string(b)), "\n", ", ")
	if want := "first, sidecar, second, main, sidecar, main ends, sidecar stops"; err == nil && got != want {
		err = fmt.Errorf("the order was %q, not %q", got, want)
	}
	return err
}

func hostPort(r *run) error {
	if err := r.until(soon, func() error { return r.ready("web") }); err != nil {
		return err
	}
	p, err := r.pod("web")
	if err != nil {
		return err
	}
	for _, at := range []string{p.Status.PodIP + ":80", "127.0.0.1:18080", address + ":18080"} {
		if err := behaviour.Welcomed(at); err != nil {
			return err
		}
	}
	return nil
}

func hostNetwork(r *run) error {
	if err := r.until(soon, func() error { return r.ready("hostnet") }); err != nil {
		return err
	}
	if err := behaviour.Welcomed(address + ":18090"); err != nil {
		return err
	}
	return r.expect(expect{"hostnet", "web", "grep -c knode0 /proc/net/dev", "1"})
}
