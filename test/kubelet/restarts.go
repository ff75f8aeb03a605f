package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/behaviour"
)

// restarts are what pods must not notice.
var restarts = []promise{
	{"restart of kubelet: pods kept", func(r *run) error {
		return r.undisturbed(func() error {
			return errors.Join(r.kubelet.stop(syscall.SIGTERM), r.kubelet.start(r.ctx))
		})
	}},
	{"SIGKILL of kubelet: pods kept", func(r *run) error {
		return r.undisturbed(func() error {
			return errors.Join(r.kubelet.stop(syscall.SIGKILL), r.kubelet.start(r.ctx))
		})
	}},
	{"SIGKILL of cri-server: pods kept", func(r *run) error {
		return r.undisturbed(func() error {
			return errors.Join(r.KillServer(), r.StartServer(r.ctx))
		})
	}},
	{"cri-server away for 10 s: pods kept, an exit in that time noticed", exitUnattended},
	{"SIGKILL of both: pods kept", func(r *run) error {
		return r.undisturbed(func() error {
			return errors.Join(r.kubelet.stop(syscall.SIGKILL), r.KillServer(), r.StartServer(r.ctx), r.kubelet.start(r.ctx))
		})
	}},
}

// lasting is what must stay as it is: the containers of the everlasting pods with their starts.
func (r *run) lasting() (map[string]string, error) {
	all := map[string]string{}
	for _, name := range append([]string{"gates"}, everlasting...) {
		p, err := r.pod(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, c := range p.Status.ContainerStatuses {
			if c.State.Running == nil {
				return nil, fmt.Errorf("%s: %s does not run: %v", name, c.Name, p)
			}
			all[name+"/"+c.Name] = fmt.Sprintf("%s, pod %s, %d restarts, started %s", c.ContainerID, p.Status.PodIP, c.RestartCount,
				c.State.Running.StartedAt)
		}
	}
	return all, nil
}

// undisturbed checks that pods stay what they are, and become ready again, while something else happens.
func (r *run) undisturbed(happens func() error) error {
	if err := r.allReady(5 * time.Second); err != nil {
		return err
	}
	before, err := r.lasting()
	if err != nil {
		return err
	}
	from := time.Now()
	if err := happens(); err != nil {
		return err
	}
	// kubelet tries to connect every 3 s, give or take a fifth.
	r.away = append(r.away, [2]time.Time{from, time.Now().Add(5 * time.Second)})
	// Each kind of probe has to have succeeded again: until then kubelet shows what it knew.
	if err := r.probed(); err != nil {
		return err
	}
	if err := podsRun(r); err != nil {
		return err
	}
	after, err := r.lasting()
	if err != nil {
		return err
	}
	for name, was := range before {
		if after[name] != was {
			return fmt.Errorf("%s was %s and is %s", name, was, after[name])
		}
	}
	return behaviour.Welcomed("127.0.0.1:18080")
}

var probeCount = regexp.MustCompile(`(?m)^prober_probe_total\{container="web",.*pod="web-.*probe_type="(Liveness|Readiness)",result="successful"\} (\d+)`)

// probed waits until two more probes of each kind have succeeded.
func (r *run) probed() error {
	first := map[string]int{}
	return r.until(soon, func() error {
		m, err := r.get("/metrics/probes")
		if err != nil {
			return err
		}
		seen := 0
		for _, c := range probeCount.FindAllStringSubmatch(string(m), -1) {
			n, _ := strconv.Atoi(c[2])
			if _, ok := first[c[1]]; !ok {
				first[c[1]] = n
			}
			if n >= first[c[1]]+2 {
				seen++
			}
		}
		if seen < 2 {
			return errors.New("no probes succeed")
		}
		return nil
	})
}

// exitUnattended lets a container end while there is no cri-server, for longer than probes and status calls are patient.
func exitUnattended(r *run) error {
	if err := r.place("onestop"); err != nil {
		return err
	}
	first, err := r.running("onestop", "once")
	if err != nil {
		return err
	}
	err = r.undisturbed(func() error {
		if err := r.KillServer(); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(r.share, "stop-once"), nil, 0o644); err != nil {
			return err
		}
		began := time.Now()
		err := r.until(20*time.Second, func() error {
			if time.Since(began) < 10*time.Second {
				return errors.New("the server stays away for 10 s")
			}
			return nil
		})
		return errors.Join(err, r.StartServer(r.ctx))
	})
	if err != nil {
		return err
	}
	return r.until(soon, func() error {
		p, err := r.pod("onestop")
		if err != nil {
			return err
		}
		c := p.container("once")
		if last := c.LastState.Terminated; c.RestartCount != 1 || last == nil || last.ExitCode != 7 || last.Message != "stopped alone" ||
			!strings.HasSuffix(last.ContainerID, first.id()) {
			return fmt.Errorf("the exit was not noticed as it was: %v, last %v", p, c.LastState)
		}
		return nil
	})
}

// collectGarbage starts kubelet with a threshold for free space that can't be met, so that it removes every image
// nobody uses.
func collectGarbage(r *run) error {
	const unused = "registry.k8s.io/e2e/busybox:zstd"
	pulled, err := r.Image.PullImage(r.ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: unused}})
	if err != nil {
		return err
	}
	if err := podsRun(r); err != nil { // kubelet was started a moment ago
		return err
	}
	used, err := r.lasting()
	if err != nil {
		return err
	}
	r.evict = ", imagefs.available: 99.9%"
	defer func() { r.evict = "" }()
	if err := errors.Join(r.kubelet.stop(syscall.SIGTERM), r.kubelet.start(r.ctx)); err != nil {
		return err
	}
	err = r.until(2*time.Minute, func() error {
		s, err := r.Image.ImageStatus(r.ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: pulled.ImageRef}})
		if err == nil && s.Image != nil {
			err = errors.New("the unused image is still there")
		}
		return err
	})
	if err != nil {
		return err
	}
	list, err := r.Image.ListImages(r.ctx, &cri.ListImagesRequest{})
	if err != nil {
		return err
	}
	for _, want := range []string{"e2e-test-images/busybox", "e2e-test-images/nginx", "demo/web"} {
		if !strings.Contains(fmt.Sprint(list.Images), want) {
			return fmt.Errorf("%s is in use and was removed", want)
		}
	}
	if err := podsRun(r); err != nil {
		return err
	}
	after, err := r.lasting()
	if err == nil && fmt.Sprint(after) != fmt.Sprint(used) {
		err = fmt.Errorf("containers changed: %v, %v", used, after)
	}
	return err
}
