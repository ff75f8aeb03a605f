package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// profiles tell where the CPU of pod starts goes, and for what they wait on each other.
type profiles struct {
	Pods     int     `json:"pods"` // started one after the other while perf(1) looked
	User     float64 `json:"user_ms"`
	System   float64 `json:"system_ms"` // CPU per pod, of the cgroup of the runtime and its pods
	Programs []share `json:"programs"`  // percent of samples, by program and whether in the kernel
	Kernel   []share `json:"kernel"`    // percent of samples, by function of the kernel
	Daemon   []share `json:"daemon"`    // percent of cri-server's CPU in starts, by the innermost function of ours

	Waits int     `json:"waits_pods"` // started, 8 at a time, while waits were taken down
	Mutex []share `json:"mutex"`      // ms per pod that others waited for a lock that this function held
	Block []share `json:"block"`      // ms per pod that this function waited
}

const (
	profilePods = 150 // at least, one after the other
	profileSecs = 3
	rowsOf      = 12 // of each table
)

// profiling profiles pod starts. Of other runtimes, and without what it takes, there is nothing.
func profiling(ctx context.Context, d *daemon, s size, r *result) error {
	if !d.profiled {
		return nil
	}
	p := &profiles{}
	r.Profiles = p
	return errors.Join(p.perf(ctx, d, max(profilePods, 8*s.Cycles)), p.cpu(ctx, d), p.waits(ctx, d))
}

// perf samples all of the runtime's processes, and those they start, with the kernel.
func (p *profiles) perf(ctx context.Context, d *daemon, pods int) error {
	file := filepath.Join(d.dir, "perf.data")
	defer os.Remove(file)
	var pids []string
	for _, pid := range d.group.members() {
		pids = append(pids, strconv.Itoa(pid))
	}
	c := exec.CommandContext(ctx, "perf", "record", "-q", "-e", "cpu-clock", "-F", "4999", "-g", "-o", file, "-p", strings.Join(pids, ","))
	sampled := c.Start() == nil // else it is not there
	if sampled {
		settle(ctx, time.Second) // it says nothing when it has begun
	}
	list := make([]*pod, pods)
	first := d.nextFew(pods)
	user, system := d.group.split()
	for i := range list {
		var err error
		if list[i], err = d.begin(ctx, first+i, limits{}, nil); err != nil {
			return err
		}
	}
	toUser, toSystem := d.group.split()
	p.Pods, p.User, p.System = pods, ms(toUser-user)/float64(pods), ms(toSystem-system)/float64(pods)
	if sampled {
		_ = c.Process.Signal(unix.SIGINT)
		_ = c.Wait()
	}
	for _, x := range list {
		if err := d.end(ctx, x, nil); err != nil {
			return err
		}
	}
	if !sampled {
		return nil
	}
	out, err := exec.CommandContext(ctx, "perf", "report", "-i", file, "--stdio", "--no-children", "-g", "none", "-F", "overhead,comm,dso,sym", "-t", ";").Output()
	if err != nil {
		return fmt.Errorf("perf report: %w", err)
	}
	samples, sum := parsePerf(string(out)), 0.0
	for _, t := range samples {
		sum += t.value // which is not always 100
	}
	p.Programs = top(samples, func(t trace) string { return t.stack[0] }, 100/sum, rowsOf, 0.5)
	p.Kernel = top(samples, func(t trace) string { return t.stack[1] }, 100/sum, rowsOf, 0.5)
	return nil
}

// parsePerf reads lines of percent, program, object and function, as traces of the program with where it was, and the function
// if it is the kernel's.
func parsePerf(out string) (list []trace) {
	for l := range strings.Lines(out) {
		f := strings.Split(strings.TrimSpace(l), ";")
		if len(f) != 4 || strings.HasPrefix(l, "#") {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(f[0]), "%"), 64)
		if err != nil {
			continue
		}
		// cri-monitor's threads are named by the descriptor that it was executed from.
		program, in, function := strings.TrimSpace(f[1]), "user", ""
		if name, ok := strings.CutPrefix(strings.TrimSpace(f[3]), "[k] "); ok {
			in, function = "kernel", name
		}
		if _, err := strconv.Atoi(program); err == nil {
			program = "cri-monitor"
		}
		list = append(list, trace{v, []string{program + ", " + in, function}})
	}
	return list
}

// cpu is a profile of the daemon while pods start and end; what the end takes is left out.
func (p *profiles) cpu(ctx context.Context, d *daemon) error {
	list, _, err := d.during(ctx, "profile", 4*profileSecs, 1, 50)
	if err != nil {
		return err
	}
	starts := list[:0]
	sum := 0.0
	for _, t := range list {
		if !t.has("Stop", "Remove", "release", "Delete", "cgroupfs).remove", "(*reaper)", "/pprof") {
			starts, sum = append(starts, t), sum+t.value
		}
	}
	if sum > 0 {
		p.Daemon = top(starts, func(t trace) string {
			if own := t.own(); own != "" {
				return own
			}
			if t.has("gcBgMarkWorker", "bgsweep", "bgscavenge") {
				return "garbage collection"
			}
			if t.has("google.golang.org/grpc") {
				return "gRPC"
			}
			return "the rest: scheduler, timers"
		}, 100/sum, rowsOf+3, 1)
	}
	return nil
}

// waits profiles 8 workers that start pods.
func (p *profiles) waits(ctx context.Context, d *daemon) error {
	for _, x := range []struct {
		kind string
		to   *[]share
	}{{"mutex", &p.Mutex}, {"block", &p.Block}} {
		list, pods, err := d.during(ctx, x.kind, profileSecs, 8, 64)
		if err != nil {
			return err
		}
		p.Waits = pods
		*x.to = top(list, func(t trace) string {
			// Who waits for calls, or for an operation that another goroutine is at, tells nothing, nor
			// does who waits for work; and it is about starts.
			if t.has("net/http", "operation.Do[", "Stop", "Remove", "release", "(*Events).Next", "(*Pool).run", "(*reaper).run", "network.watch") {
				return ""
			}
			return t.own()
		}, 1/float64(max(1, pods)), rowsOf, 0.01)
	}
	return nil
}

// during starts pods with so many workers for as long as a profile of the daemon takes, and returns the profile and how many
// there were. They are ended whenever there are so many as batch, which is in the profile too.
func (d *daemon) during(ctx context.Context, kind string, seconds, workers, batch int) ([]trace, int, error) {
	file := filepath.Join(d.dir, kind+".pb.gz")
	defer os.Remove(file)
	var over error
	done := make(chan struct{})
	go func() {
		defer close(done)
		over = d.fetchProfile(ctx, fmt.Sprintf("%s?seconds=%d", kind, seconds), file)
	}()
	all := 0
	for going := true; going; {
		pods, first := make([]*pod, batch), d.nextFew(batch)
		err := each(batch, workers, func(i int) (err error) {
			select {
			case <-done:
				return nil
			default:
			}
			pods[i], err = d.begin(ctx, first+i, limits{}, nil)
			return err
		})
		if err != nil {
			<-done
			return nil, 0, errors.Join(err, over)
		}
		err = each(batch, workers, func(i int) error {
			if pods[i] == nil {
				d.group.removePod(podName(first + i))
				return nil
			}
			return d.end(ctx, pods[i], nil)
		})
		if err != nil {
			<-done
			return nil, 0, errors.Join(err, over)
		}
		for _, p := range pods {
			if p != nil {
				all++
			}
		}
		select {
		case <-done:
			going = false
		default:
		}
	}
	if over != nil {
		return nil, 0, over
	}
	list, err := traces(ctx, file)
	return list, all, err
}

// saveProfile keeps a profile of cri-server, if profiles are wanted. Nothing of other runtimes.
func (d *daemon) saveProfile(ctx context.Context, name, which string) error {
	if d.o.profile == "" || d.monitor == "" {
		return nil
	}
	if err := os.MkdirAll(d.o.profile, 0o755); err != nil {
		return err
	}
	return d.fetchProfile(ctx, which, filepath.Join(d.o.profile, filepath.Base(d.dir)+"-"+name))
}

// fetchProfile asks cri-server for a profile: see net/http/pprof.
func (d *daemon) fetchProfile(ctx context.Context, which, file string) error {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(d.state, "state", "admin.sock"))
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://cri-server/debug/pprof/"+which, nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(req)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("profile %s: %s", which, answer.Status)
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(f, answer.Body)
	return err
}
