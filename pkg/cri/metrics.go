package cri

import (
	"context"
	"iter"
	"slices"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/network"
	"github.com/seed-9a14075a/cri-server/pkg/runtime"
	"github.com/seed-9a14075a/cri-server/pkg/sandbox"
)

// These are the metrics that cAdvisor has of containers, under the same names and labels, so that dashboards and alerts
// work on either (KEP-2371). A value is a whole number in the CRI: seconds are rounded down.
const (
	counter = runtimeapi.MetricType_COUNTER
	gauge   = runtimeapi.MetricType_GAUGE
)

// baseLabels are what every metric has. id is the cgroup's path and name the CRI's id, as cAdvisor has them.
var baseLabels = []string{"pod", "namespace", "container", "id", "image", "name"}

// podContainer is the value of the label "container" for what belongs to the pod and to none of its containers.
const podContainer = "POD"

// value is one sample: its number, the values of the metric's own labels, and when it was taken, 0 for now.
type value struct {
	n      uint64
	labels []string
	taken  int64
}

// metric is a row of a table: what describes a metric, and how its values are got from a reading.
type metric[R any] struct {
	name, help string
	kind       runtimeapi.MetricType
	labels     []string                      // after baseLabels
	values     func(to []value, r R) []value // appended
}

func (m *metric[R]) descriptor() *runtimeapi.MetricDescriptor {
	return &runtimeapi.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: append(slices.Clone(baseLabels), m.labels...)}
}

// sample is a metric with its value, which are allocated together.
type sample struct {
	metric runtimeapi.Metric
	value  runtimeapi.UInt64Value
}

// read adds the values of every metric of a table; base are the values of baseLabels. look has the room that it needs.
func read[R any](look *scrape, to []*runtimeapi.Metric, table []metric[R], base []string, r R) []*runtimeapi.Metric {
	values := look.values[:0]
	counts := look.counts[:0]
	for i := range table {
		n := len(values)
		values = table[i].values(values, r)
		counts = append(counts, len(values)-n)
	}
	look.values, look.counts = values, counts
	to = slices.Grow(to, len(values))
	samples := make([]sample, len(values))
	var own, whole []string // the labels of the value before, without and with base: many values of a device follow each other
	next := 0
	for i := range table {
		for range counts[i] {
			v, s := &values[next], &samples[next]
			next++
			labels := base
			if len(v.labels) > 0 {
				if !slices.Equal(own, v.labels) {
					own, whole = v.labels, slices.Concat(base, v.labels)
				}
				labels = whole
			}
			s.value.Value = v.n
			s.metric.Name, s.metric.Timestamp, s.metric.MetricType = table[i].name, v.taken, table[i].kind
			s.metric.LabelValues, s.metric.Value = labels, &s.value
			to = append(to, &s.metric)
		}
	}
	clear(values)
	return to
}

// ListMetricDescriptors describes every metric; kubelet asks once.
func (s *Server) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	resp := &runtimeapi.ListMetricDescriptorsResponse{}
	for i := range containerMetrics {
		resp.Descriptors = append(resp.Descriptors, containerMetrics[i].descriptor())
	}
	for i := range networkMetrics {
		resp.Descriptors = append(resp.Descriptors, networkMetrics[i].descriptor())
	}
	return resp, nil
}

// ListPodSandboxMetrics measures the ready pods and their running containers. A container has about 55 values, 16 KiB:
// beyond 1000 containers the answer is larger than clients take, and StreamPodSandboxMetrics is needed.
func (s *Server) ListPodSandboxMetrics(ctx context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: collect(s.eachPodMetrics(ctx))}, ctx.Err()
}

func (s *Server) eachPodMetrics(ctx context.Context) iter.Seq[*runtimeapi.PodSandboxMetrics] {
	return func(yield func(*runtimeapi.PodSandboxMetrics) bool) {
		all := runningIn(s.containers.List())
		s.containers.MeasureLayers(ctx, all...)
		running := bySandbox(all)
		look := newScrape()
		for _, sb := range s.sandboxes.List() {
			if sb.State != sandbox.Ready {
				continue
			}
			if ctx.Err() != nil || !yield(s.podMetrics(look, sb, running[sb.ID])) {
				return
			}
		}
	}
}

func (s *Server) podMetrics(look *scrape, sb *sandbox.Sandbox, running []*runtime.Container) *runtimeapi.PodSandboxMetrics {
	out := &runtimeapi.PodSandboxMetrics{PodSandboxId: sb.ID}
	pod := sandboxMetadata(sb)
	if sb.NetNS != "" {
		base := labelValues(pod, podContainer, sb.CgroupPath, "", sb.ID)
		list, _ := network.Counters(sb.NetNS, sb.Pid) // an error: the pod is going down
		for _, c := range list {
			if c.Name != "lo" {
				out.Metrics = read(look, out.Metrics, networkMetrics, base, c)
			}
		}
	}
	for _, ctr := range running {
		r := s.reading(look, ctr)
		if r == nil {
			continue // it has ended this moment
		}
		base := labelValues(pod, containerMetadata(ctr).GetName(), ctr.CgroupPath, imageLabel(ctr), ctr.ID)
		metrics := read(look, nil, containerMetrics, base, r)
		out.ContainerMetrics = append(out.ContainerMetrics, &runtimeapi.ContainerMetrics{ContainerId: ctr.ID, Metrics: metrics})
	}
	return out
}

// labelValues are the values of baseLabels, in their order.
func labelValues(pod *runtimeapi.PodSandboxMetadata, container, cgroup, image, id string) []string {
	return []string{pod.GetName(), pod.GetNamespace(), container, cgroup, image, id}
}

func imageLabel(ctr *runtime.Container) string {
	i := ctr.Config.GetImage()
	if i.GetUserSpecifiedImage() != "" {
		return i.GetUserSpecifiedImage()
	}
	return i.GetImage()
}

// networkMetrics are of one interface of a pod.
var networkMetrics = func() []metric[network.InterfaceCounters] {
	type counters = network.InterfaceCounters
	var table []metric[counters]
	for _, m := range []struct {
		name, help string
		get        func(counters) uint64
	}{
		{"receive_bytes", "bytes received", func(c counters) uint64 { return c.RxBytes }},
		{"receive_packets", "packets received", func(c counters) uint64 { return c.RxPackets }},
		{"receive_packets_dropped", "packets dropped while receiving", func(c counters) uint64 { return c.RxDropped }},
		{"receive_errors", "errors while receiving", func(c counters) uint64 { return c.RxErrors }},
		{"transmit_bytes", "bytes sent", func(c counters) uint64 { return c.TxBytes }},
		{"transmit_packets", "packets sent", func(c counters) uint64 { return c.TxPackets }},
		{"transmit_packets_dropped", "packets dropped while sending", func(c counters) uint64 { return c.TxDropped }},
		{"transmit_errors", "errors while sending", func(c counters) uint64 { return c.TxErrors }},
	} {
		table = append(table, metric[counters]{
			name: "container_network_" + m.name + "_total", help: strings.ToUpper(m.help[:1]) + m.help[1:] + ", since the interface was made.",
			kind: counter, labels: []string{"interface"},
			values: func(to []value, c counters) []value { return append(to, value{n: m.get(c), labels: []string{c.Name}}) },
		})
	}
	return table
}()

// seconds of a time in ns.
func seconds(ns uint64) uint64 { return ns / uint64(time.Second) }
