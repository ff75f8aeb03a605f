package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// results are one run.
type results struct {
	Time    time.Time         `json:"time"`
	Took    float64           `json:"took_s"`
	Command string            `json:"command"`
	Quick   bool              `json:"quick"`
	Size    size              `json:"size"`
	Machine map[string]string `json:"machine"`
	Load    [2]string         `json:"load_average"` // before and after
	Floor   *floor            `json:"floor,omitempty"`
	Targets []*result         `json:"targets"`
}

// result is what was measured of one runtime. Times are ms, CPU is ms of CPU time, memory is KiB.
type result struct {
	Target  string `json:"target"`
	Version string `json:"version"`
	Network string `json:"network"`
	Sync    string `json:"sync"`

	Calls     map[string]*samples `json:"calls,omitempty"`     // by call; "pod start" and "pod end" are sums
	CPU       map[string]*samples `json:"calls_cpu,omitempty"` // the same, CPU
	Parallel  []parallel          `json:"parallel,omitempty"`
	Growth    []growth            `json:"growth,omitempty"`
	Memory    []memory            `json:"memory,omitempty"`
	Lists     []lists             `json:"lists,omitempty"`
	Probes    *probes             `json:"probes,omitempty"`
	Logs      *logs               `json:"logs,omitempty"`
	Restarts  []restart           `json:"restarts,omitempty"`
	Syscalls  map[string]float64  `json:"syscalls,omitempty"` // per pod life
	Idle      *idle               `json:"idle,omitempty"`
	Spans     map[string]*samples `json:"spans,omitempty"`      // stages of calls, cri-server's
	SpanOrder []string            `json:"span_order,omitempty"` // the stages in their order
	Profiles  *profiles           `json:"profiles,omitempty"`
	Errors    []string            `json:"errors,omitempty"` // phases that failed
}

// samples are single measurements.
type samples struct {
	Values []float64 `json:"values"`
}

func (s *samples) add(v float64) { s.Values = append(s.Values, math.Round(v*1000)/1000) }

// at is the nearest-rank percentile; NaN of nothing.
func (s *samples) at(p float64) float64 {
	if s == nil || len(s.Values) == 0 {
		return math.NaN()
	}
	v := slices.Sorted(slices.Values(s.Values))
	return v[max(0, int(math.Ceil(p/100*float64(len(v))))-1)]
}

func (s *samples) mean() float64 {
	if s == nil || len(s.Values) == 0 {
		return math.NaN()
	}
	sum := 0.0
	for _, v := range s.Values {
		sum += v
	}
	return sum / float64(len(s.Values))
}

// record adds a sample to a map of them.
func record(m *map[string]*samples, key string, v float64) {
	if *m == nil {
		*m = map[string]*samples{}
	}
	if (*m)[key] == nil {
		(*m)[key] = &samples{}
	}
	(*m)[key].add(v)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func (r *results) target(name string) *result {
	for _, t := range r.Targets {
		if t.Target == name {
			return t
		}
	}
	t := &result{Target: name}
	r.Targets = append(r.Targets, t)
	return t
}

func (r *results) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "results.json"), append(b, '\n'), 0o644)
}

func readResults(name string) (*results, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	r := &results{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return r, nil
}

func load() string {
	b, _ := os.ReadFile("/proc/loadavg")
	f := strings.Fields(string(b))
	return strings.Join(f[:min(3, len(f))], " ")
}

// machine describes where it was measured.
func machine(dir string) map[string]string {
	m := map[string]string{"cores": fmt.Sprint(runtime.NumCPU()), "arch": runtime.GOARCH}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m["kernel"] = unix.ByteSliceToString(u.Release[:])
	}
	b, _ := os.ReadFile("/proc/cpuinfo")
	for l := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(k) == "model name" {
			m["cpu"] = strings.TrimSpace(v)
		}
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		m["memory"] = fmt.Sprintf("%d GB", uint64(si.Totalram)*uint64(si.Unit)>>30)
	}
	if out, err := exec.Command("stat", "-f", "-c", "%T", dir).Output(); err == nil {
		m["file system"] = string(bytes.TrimSpace(out))
	}
	m["cgroups"] = "v1"
	if cgroup2() {
		m["cgroups"] = "v2"
	}
	return m
}
