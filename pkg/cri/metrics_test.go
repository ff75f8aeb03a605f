package cri

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/cgroupdriver"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/network"
	"github.com/seed-9a14075a/cri-server/pkg/runtime"
)

func fullReading() *reading {
	psi := func(n uint64) *cgroupdriver.PSI {
		return &cgroupdriver.PSI{Some: cgroupdriver.PSILine{Total: n * 1e9}, Full: cgroupdriver.PSILine{Total: (n + 1) * 1e9}}
	}
	free, files := uint64(100), uint64(1024)
	return &reading{
		ctr: &runtime.Container{ID: "id", StartedAt: time.Unix(1000, 5), Resources: &runtimeapi.LinuxContainerResources{
			CpuQuota: 50000, CpuShares: 512, Unified: map[string]string{"memory.high": "77"},
		}},
		stats: &cgroupdriver.Stats{
			Time:   time.Unix(2000, 0),
			CPU:    &cgroupdriver.CPUStats{Usage: 10_999_999_999, User: 7e9, System: 3e9, Periods: 11, ThrottledPeriods: 12, ThrottledTime: 13e9, PSI: psi(20)},
			Memory: &cgroupdriver.MemoryStats{Usage: 1, WorkingSet: 2, RSS: 3, Limit: 1000, EventsHigh: 8, EventsMax: 9, OOMKills: 10, PSI: psi(30)},
			Swap:   &cgroupdriver.SwapStats{Usage: 50, Available: &free},
			Pids:   &cgroupdriver.PidsStats{Current: 4, Limit: 5},
			IO:     &cgroupdriver.IOStats{PSI: psi(40)},
		},
		version:   2,
		processes: &processes{count: 1, files: 2, sockets: 3, maxFiles: &files},
		layer:     &imagestore.Usage{Bytes: 4096, Time: time.Unix(1999, 0)},
		layerFS:   &filesystem{device: "/dev/sda1", bytes: 1 << 30, inodes: 1000, inodesFree: 900},
		devices: []deviceIO{
			{cgroupdriver.DeviceIO{Major: 8, ReadBytes: 1, WriteBytes: 2, ReadIOs: 3, WriteIOs: 4}, "/dev/sda"},
			{cgroupdriver.DeviceIO{Major: 8, Minor: 16}, "/dev/sdb"},
		},
	}
}

func descriptors(t *testing.T) []*runtimeapi.MetricDescriptor {
	t.Helper()
	r, err := (&Server{}).ListMetricDescriptors(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return r.Descriptors
}

var base = labelValues(&runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "ns"}, "c", "/cgroup", "image", "id")

// samples are all metrics that there can be.
func samples() []*runtimeapi.Metric {
	list := read(newScrape(), nil, containerMetrics, base, fullReading())
	return read(newScrape(), list, networkMetrics, base, network.InterfaceCounters{Name: "eth0", RxBytes: 1, TxDropped: 8})
}

func TestDescriptors(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range descriptors(t) {
		if seen[d.Name] || !strings.HasPrefix(d.Name, "container_") || !strings.HasSuffix(d.Help, ".") {
			t.Errorf("%v", d)
		}
		seen[d.Name] = true
		if !slices.Equal(d.LabelKeys[:6], []string{"pod", "namespace", "container", "id", "image", "name"}) {
			t.Errorf("%s: labels %q", d.Name, d.LabelKeys)
		}
	}
	for i, d := range descriptors(t) {
		if again := descriptors(t)[i]; !proto.Equal(d, again) {
			t.Errorf("%v has become %v", d, again)
		}
	}
}

func TestEveryMetricIsDescribed(t *testing.T) {
	keys := map[string][]string{}
	for _, d := range descriptors(t) {
		keys[d.Name] = d.LabelKeys
	}
	unique := map[string]bool{}
	for _, m := range samples() {
		if len(keys[m.Name]) == 0 || len(m.LabelValues) != len(keys[m.Name]) {
			t.Errorf("%s: labels %q for %q", m.Name, m.LabelValues, keys[m.Name])
		}
		if m.Value == nil { // kubelet does not look
			t.Errorf("%s has no value", m.Name)
		}
		if strings.HasSuffix(m.Name, "_total") != (m.MetricType == counter) && m.Name != "container_fs_inodes_total" && m.Name != "container_memory_failcnt" {
			t.Errorf("%s is a %v", m.Name, m.MetricType)
		}
		if key := m.Name + strings.Join(m.LabelValues, "|"); unique[key] {
			t.Errorf("twice: %s", key)
		} else {
			unique[key] = true
		}
	}
	for name := range keys {
		if !slices.ContainsFunc(samples(), func(m *runtimeapi.Metric) bool { return m.Name == name }) {
			t.Errorf("%s is described and never there", name)
		}
	}
}

// What kubelet's e2e_node test wants to see on /metrics/cadvisor.
func TestRequiredMetrics(t *testing.T) {
	have := map[string]bool{}
	for _, d := range descriptors(t) {
		have[strings.TrimPrefix(d.Name, "container_")] = true
	}
	for name := range strings.FieldsSeq(`blkio_device_usage_total cpu_system_seconds_total cpu_usage_seconds_total
		cpu_user_seconds_total file_descriptors fs_reads_bytes_total fs_reads_total fs_usage_bytes fs_writes_bytes_total
		fs_writes_total last_seen memory_cache memory_failcnt memory_failures_total memory_mapped_file memory_max_usage_bytes
		memory_rss memory_swap memory_usage_bytes memory_working_set_bytes memory_events_high_total memory_events_max_total
		oom_events_total processes sockets spec_cpu_period spec_cpu_shares spec_memory_limit_bytes
		spec_memory_reservation_limit_bytes spec_memory_swap_limit_bytes start_time_seconds threads threads_max ulimits_soft
		network_receive_bytes_total network_receive_errors_total network_receive_packets_dropped_total
		network_receive_packets_total network_transmit_bytes_total network_transmit_errors_total
		network_transmit_packets_dropped_total network_transmit_packets_total fs_inodes_free fs_inodes_total fs_limit_bytes
		cpu_cfs_periods_total cpu_cfs_throttled_periods_total cpu_cfs_throttled_seconds_total
		pressure_cpu_stalled_seconds_total pressure_cpu_waiting_seconds_total pressure_memory_stalled_seconds_total
		pressure_memory_waiting_seconds_total pressure_io_stalled_seconds_total pressure_io_waiting_seconds_total`) {
		if !have[name] {
			t.Errorf("container_%s is missing", name)
		}
	}
}

func TestMetricValues(t *testing.T) {
	got := map[string]uint64{}
	taken := map[string]int64{}
	for _, m := range samples() {
		key := m.Name + "{" + strings.Join(m.LabelValues[len(baseLabels):], ",") + "}"
		got[key], taken[key] = m.Value.Value, m.Timestamp
	}
	for key, want := range map[string]uint64{
		"container_last_seen{}":                                  2000,
		"container_start_time_seconds{}":                         1000,
		"container_cpu_usage_seconds_total{total}":               10,
		"container_cpu_cfs_throttled_seconds_total{}":            13,
		"container_memory_events_high_total{}":                   8,
		"container_memory_events_max_total{}":                    9,
		"container_oom_events_total{}":                           10,
		"container_memory_swap{}":                                50,
		"container_blkio_device_usage_total{/dev/sda,8,0,Read}":  1,
		"container_fs_writes_total{/dev/sda}":                    4,
		"container_fs_writes_total{/dev/sdb}":                    0,
		"container_fs_usage_bytes{/dev/sda1}":                    4096,
		"container_fs_inodes_free{/dev/sda1}":                    900,
		"container_processes{}":                                  1,
		"container_sockets{}":                                    3,
		"container_ulimits_soft{max_open_files}":                 1024,
		"container_threads{}":                                    4,
		"container_threads_max{}":                                5,
		"container_spec_cpu_period{}":                            100000,
		"container_spec_cpu_shares{}":                            512,
		"container_spec_memory_limit_bytes{}":                    1000,
		"container_spec_memory_reservation_limit_bytes{}":        77,
		"container_spec_memory_swap_limit_bytes{}":               150,
		"container_pressure_cpu_waiting_seconds_total{}":         20,
		"container_pressure_cpu_stalled_seconds_total{}":         21,
		"container_pressure_memory_waiting_seconds_total{}":      30,
		"container_pressure_io_stalled_seconds_total{}":          41,
		"container_network_receive_bytes_total{eth0}":            1,
		"container_network_transmit_packets_dropped_total{eth0}": 8,
	} {
		if n, ok := got[key]; !ok || n != want {
			t.Errorf("%s = %d (%v), want %d", key, n, ok, want)
		}
	}
	for key, at := range taken {
		if cached := strings.HasPrefix(key, "container_fs_usage_bytes"); cached != (at != 0) {
			t.Errorf("%s was taken at %d", key, at)
		}
	}
	r := fullReading()
	r.version = 1
	if got := swapLimit(r); got != 1150 { // with memory, as memory.memsw.limit_in_bytes
		t.Errorf("v1 swap limit: %d", got)
	}
	r.ctr.Resources = nil
	if got := memoryReservation(r); got != 0 {
		t.Errorf("no reservation: %d", got)
	}
}

// A container may end between any two reads.
func TestMetricsOfLittle(t *testing.T) {
	r := &reading{ctr: &runtime.Container{}, stats: &cgroupdriver.Stats{Time: time.Unix(2000, 0)}, version: 2}
	for _, m := range read(newScrape(), nil, containerMetrics, base, r) {
		if m.Value == nil || len(m.LabelValues) != len(base) {
			t.Errorf("%v", m)
		}
	}
	r.stats.CPU, r.stats.Memory, r.stats.IO = &cgroupdriver.CPUStats{}, &cgroupdriver.MemoryStats{}, &cgroupdriver.IOStats{}
	for _, m := range read(newScrape(), nil, containerMetrics, base, r) {
		if strings.Contains(m.Name, "pressure") {
			t.Errorf("without PSI: %v", m)
		}
	}
}

func TestOpenFiles(t *testing.T) {
	before, sockets, _ := openFiles(os.Getpid(), 10000)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	open, now, looked := openFiles(os.Getpid(), 10000)
	if now != sockets+1 || open < before || looked != int(open) {
		t.Errorf("%d files with %d sockets, then %d with %d, %d looked at", before, sockets, open, now, looked)
	}
	if _, _, looked := openFiles(os.Getpid(), 2); looked != 2 {
		t.Errorf("looked at %d of 2", looked)
	}
	if open, sockets, looked := openFiles(1<<30, 100); open+sockets != 0 || looked != 0 {
		t.Error("files of a process that is not there")
	}
}

func TestCgroupPids(t *testing.T) {
	dir := t.TempDir()
	for sub, procs := range map[string]string{".": "1\n2\n0\n", "a": "3\n", "a/b": "nonsense\n-4\n5\n", "c": ""} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, sub, "cgroup.procs"), []byte(procs), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := cgroupPids(dir); !slices.Equal(got, []int{1, 2, 3, 5}) {
		t.Errorf("got %v", got)
	}
	for i := range 2 * maxDirs { // a container can make many
		if err := os.Mkdir(filepath.Join(dir, fmt.Sprint("x", i)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if got := cgroupPids(dir); len(got) < 2 || len(got) > 4 {
		t.Errorf("got %v", got)
	}
	if got := cgroupPids(filepath.Join(dir, "gone")); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

func TestScrapeNamesDevices(t *testing.T) {
	l := newScrape()
	if got := l.device(0, 99); got != "0:99" {
		t.Errorf("got %q", got)
	}
	f := l.filesystem(t.TempDir())
	if f == nil || f.bytes == 0 || f.device == "" {
		t.Errorf("got %+v", f)
	}
	for range 2 { // the second answer is a kept one
		if l.filesystem("/does/not/exist") != nil {
			t.Error("a file system from nowhere")
		}
	}
}

// The values of a container are made in a few pieces of memory: a node has hundreds of containers, and is asked every few seconds.
func TestMetricsAllocateLittle(t *testing.T) {
	look, base, r := newScrape(), []string{"pod", "ns", "ctr", "/cgroup", "image", "id"}, fullReading()
	n := len(read(look, nil, containerMetrics, base, r)) // which makes look's room
	if pieces := testing.AllocsPerRun(10, func() { read(look, nil, containerMetrics, base, r) }); pieces > float64(n) {
		t.Errorf("%v allocations for %d values", pieces, n)
	}
}

func BenchmarkMetrics(b *testing.B) {
	look, base, r := newScrape(), []string{"pod", "ns", "ctr", "/cgroup", "image", "id"}, fullReading()
	b.ReportAllocs()
	for b.Loop() {
		read(look, nil, containerMetrics, base, r)
	}
}
