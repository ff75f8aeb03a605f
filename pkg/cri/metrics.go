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
	labels     []string // after baseLabels
	values     func(R) []value
}

func (m *metric[R]) descriptor() *runtimeapi.MetricDescriptor {
	return &runtimeapi.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: append(slices.Clone(baseLabels), m.labels...)}
}

// read adds the values of every metric of a table; base are the values of baseLabels.
func read[R any](to []*runtimeapi.Metric, table []metric[R], base []string, r R) []*runtimeapi.Metric {
	for i := range table {
		m := &table[i]
		for _, v := range m.values(r) {
			labels := base
			if len(v.labels) > 0 {
				labels = append(slices.Clone(base), v.labels...)
			}
			to = append(to, &runtimeapi.Metric{
				Name: m.name, Timestamp: v.taken, MetricType: m.kind, LabelValues: labels, Value: &runtimeapi.UInt64Value{Value: v.n},
			})
		}
	}
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
		list, _ := network.Counters(sb.NetNS) // an error: the pod is going down
		for _, c := range list {
			if c.Name != "lo" {
				out.Metrics = read(out.Metrics, networkMetrics, base, c)
			}
		}
	}
	for _, ctr := range running {
		r := s.reading(look, ctr)
		if r == nil {
			continue // it has ended this moment
		}
		base := labelValues(pod, containerMetadata(ctr).GetName(), ctr.CgroupPath, imageLabel(ctr), ctr.ID)
		metrics := read(make([]*runtimeapi.Metric, 0, 64), containerMetrics, base, r)
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
			values: func(c counters) []value { return []value{{n: m.get(c), labels: []string{c.Name}}} },
		})
	}
	return table
}()

// seconds of a time in ns.
func seconds(ns uint64) uint64 { return ns / uint64(time.Second) }
