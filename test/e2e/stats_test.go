package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// drain reads a stream of batches to its end.
func drain[M, T any](t *testing.T, what string, stream grpc.ServerStreamingClient[M], err error, items func(*M) []T) (all []T, messages int) {
	t.Helper()
	for err == nil {
		var m *M
		if m, err = stream.Recv(); err == nil {
			messages++
			if len(items(m)) == 0 {
				t.Errorf("%s: an empty message", what)
			}
			all = append(all, items(m)...)
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("%s: %v", what, err)
	}
	return all, messages
}

// same compares what identifies the items of a stream and of a list.
func same[T any](t *testing.T, what string, streamed, listed []T, id func(T) string) {
	t.Helper()
	var a, b []string
	for _, i := range streamed {
		a = append(a, id(i))
	}
	for _, i := range listed {
		b = append(b, id(i))
	}
	if !slices.Equal(a, b) {
		t.Errorf("%s: streamed %q, listed %q", what, a, b)
	}
}

// The six streams give what the lists give, with the same filters.
func TestListStreams(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox, images.Web)
	for _, name := range []string{"one", "two"} {
		p := f.podConfig(name)
		id := f.runPod(p)
		c := containerConfig("c", images.Busybox, "sleep", "1000")
		c.Labels = p.Labels
		f.runContainer(id, p, c)
		// Too much for a single message.
		for i := range 12 {
			c := containerConfig(fmt.Sprint("big", i), images.Busybox, "true")
			c.Annotations = map[string]string{"big": strings.Repeat("x", 100<<10)}
			r, err := f.Runtime.CreateContainer(f.ctx, &cri.CreateContainerRequest{PodSandboxId: id, SandboxConfig: p, Config: c})
			if err != nil {
				t.Fatal(err)
			}
			f.ids = append(f.ids, r.ContainerId)
		}
	}
	for _, filter := range []*cri.PodSandboxFilter{nil, {}, {LabelSelector: map[string]string{"app": "two"}}, {Id: "nothing"},
		{Id: f.ids[0]}, {Id: f.ids[0][:7]}, {State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_NOTREADY}}} {
		list, err := f.Runtime.ListPodSandbox(f.ctx, &cri.ListPodSandboxRequest{Filter: filter})
		stream, err2 := f.Runtime.StreamPodSandboxes(f.ctx, &cri.StreamPodSandboxesRequest{Filter: filter})
		all, _ := drain(t, "pods", stream, errors.Join(err, err2), (*cri.StreamPodSandboxesResponse).GetPodSandboxes)
		same(t, fmt.Sprint("pods ", filter), all, list.GetItems(), (*cri.PodSandbox).GetId)

		stats := &cri.PodSandboxStatsFilter{Id: filter.GetId(), LabelSelector: filter.GetLabelSelector()}
		slist, err := f.Runtime.ListPodSandboxStats(f.ctx, &cri.ListPodSandboxStatsRequest{Filter: stats})
		sstream, err2 := f.Runtime.StreamPodSandboxStats(f.ctx, &cri.StreamPodSandboxStatsRequest{Filter: stats})
		sall, _ := drain(t, "pod stats", sstream, errors.Join(err, err2), (*cri.StreamPodSandboxStatsResponse).GetPodSandboxStats)
		same(t, fmt.Sprint("pod stats ", stats), sall, slist.GetStats(), func(s *cri.PodSandboxStats) string { return s.Attributes.Id })
	}
	for _, filter := range []*cri.ContainerFilter{nil, {PodSandboxId: f.ids[0]}, {LabelSelector: map[string]string{"app": "one"}}, {Id: "nothing"},
		{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_CREATED}}} {
		list, err := f.Runtime.ListContainers(f.ctx, &cri.ListContainersRequest{Filter: filter})
		stream, err2 := f.Runtime.StreamContainers(f.ctx, &cri.StreamContainersRequest{Filter: filter})
		all, messages := drain(t, "containers", stream, errors.Join(err, err2), (*cri.StreamContainersResponse).GetContainers)
		same(t, fmt.Sprint("containers ", filter), all, list.GetContainers(), (*cri.Container).GetId)
		if size := proto.Size(list); messages < size>>20 || messages > size>>19+1 {
			t.Errorf("%d messages for %d bytes", messages, size)
		}

		stats := &cri.ContainerStatsFilter{Id: filter.GetId(), PodSandboxId: filter.GetPodSandboxId(), LabelSelector: filter.GetLabelSelector()}
		slist, err := f.Runtime.ListContainerStats(f.ctx, &cri.ListContainerStatsRequest{Filter: stats})
		sstream, err2 := f.Runtime.StreamContainerStats(f.ctx, &cri.StreamContainerStatsRequest{Filter: stats})
		sall, _ := drain(t, "container stats", sstream, errors.Join(err, err2), (*cri.StreamContainerStatsResponse).GetContainerStats)
		same(t, fmt.Sprint("container stats ", stats), sall, slist.GetStats(), func(s *cri.ContainerStats) string { return s.Attributes.Id })
	}
	for _, name := range []string{"", busybox, "registry.k8s.io/not/there:1"} {
		filter := &cri.ImageFilter{Image: &cri.ImageSpec{Image: name}}
		list, err := f.Image.ListImages(f.ctx, &cri.ListImagesRequest{Filter: filter})
		stream, err2 := f.Image.StreamImages(f.ctx, &cri.StreamImagesRequest{Filter: filter})
		all, _ := drain(t, "images", stream, errors.Join(err, err2), (*cri.StreamImagesResponse).GetImages)
		same(t, "images "+name, all, list.GetImages(), (*cri.Image).GetId)
	}
	list, err := f.Runtime.ListPodSandboxMetrics(f.ctx, &cri.ListPodSandboxMetricsRequest{})
	stream, err2 := f.Runtime.StreamPodSandboxMetrics(f.ctx, &cri.StreamPodSandboxMetricsRequest{})
	all, _ := drain(t, "metrics", stream, errors.Join(err, err2), (*cri.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics)
	same(t, "metrics", all, list.GetPodMetrics(), (*cri.PodSandboxMetrics).GetPodSandboxId)
}

// Every field that kubelet reads with PodAndContainerStatsFromCRI.
func TestPodSandboxStats(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	for _, id := range []string{"", "0123456789abcdef"} { // kubelet probes with ""
		_, err := f.Runtime.PodSandboxStats(f.ctx, &cri.PodSandboxStatsRequest{PodSandboxId: id})
		_, err2 := f.Runtime.ContainerStats(f.ctx, &cri.ContainerStatsRequest{ContainerId: id})
		if status.Code(err) != codes.NotFound || status.Code(err2) != codes.NotFound {
			t.Errorf("id %q: %v, %v", id, err, err2)
		}
	}
	p := f.podConfig("measured")
	p.Annotations = map[string]string{"x": "y"}
	id := f.runPod(p)
	c := containerConfig("c", images.Busybox, "sh", "-c", "head -c 100000 /dev/zero > /file; sleep 1000 & while :; do :; done")
	c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
	ctr := f.runContainer(id, p, c)
	f.eventually("the file", func() bool { return f.exec(ctr, "wc -c < /file || true") == "100000\n" }) // layers are measured every 10 s
	var s *cri.PodSandboxStats
	f.eventually("CPU use and a writable layer of 100 kB", func() bool {
		r, err := f.Runtime.PodSandboxStats(f.ctx, &cri.PodSandboxStatsRequest{PodSandboxId: id})
		if err != nil {
			t.Fatal(err)
		}
		s = r.Stats
		list := s.GetLinux().GetContainers()
		return len(list) == 1 && s.Linux.Cpu.GetUsageNanoCores().GetValue() > 1e7 && list[0].Cpu.GetUsageNanoCores().GetValue() > 1e7 &&
			list[0].WritableLayer.GetUsedBytes().GetValue() >= 100000
	})
	l, one := s.Linux, s.Linux.Containers[0]
	pressure := true
	if _, err := os.Stat("/proc/pressure/cpu"); err != nil {
		pressure = false
	}
	for what, ok := range map[string]bool{
		"attributes.id":          s.Attributes.Id == id && one.Attributes.Id == ctr,
		"attributes.metadata":    proto.Equal(s.Attributes.Metadata, p.Metadata) && one.Attributes.Metadata.GetName() == "c",
		"attributes.labels":      s.Attributes.Labels["app"] == "measured",
		"attributes.annotations": s.Attributes.Annotations["x"] == "y",
		"cpu":                    l.Cpu.Timestamp > 0 && l.Cpu.UsageCoreNanoSeconds.GetValue() >= one.Cpu.UsageCoreNanoSeconds.GetValue(),
		"memory":                 l.Memory.Timestamp > 0 && l.Memory.WorkingSetBytes.GetValue() > 0 && l.Memory.UsageBytes.GetValue() > 0,
		"network":                l.Network.GetTimestamp() > 0 && l.Network.DefaultInterface.GetName() == "eth0" && l.Network.DefaultInterface.GetRxBytes() != nil,
		"process":                l.Process.GetTimestamp() > 0 && l.Process.ProcessCount.GetValue() >= 3, // with pause
		"container memory":       one.Memory.AvailableBytes.GetValue() > 0 && one.Memory.AvailableBytes.GetValue() < 64<<20,
		"container layer":        one.WritableLayer.Timestamp > 0 && one.WritableLayer.InodesUsed.GetValue() > 0,
		"container layer's place": func() bool {
			_, err := os.Stat(one.WritableLayer.GetFsId().GetMountpoint())
			return err == nil
		}(),
		"psi":     !pressure || one.Cpu.Psi.GetSome() != nil && one.Memory.Psi.GetFull() != nil && one.Io.GetPsi().GetFull() != nil,
		"pod psi": !pressure || l.Cpu.Psi.GetSome() != nil && l.Memory.Psi.GetFull() != nil && l.Io.GetPsi().GetFull() != nil,
	} {
		if !ok {
			t.Errorf("%s is wrong", what)
		}
	}
	if t.Failed() {
		t.Log(s)
	}
	host := f.podConfig("hostnet")
	host.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}
	h, err := f.Runtime.PodSandboxStats(f.ctx, &cri.PodSandboxStatsRequest{PodSandboxId: f.runPod(host)})
	if err != nil || h.Stats.Linux == nil || h.Stats.Linux.Network != nil || len(h.Stats.Linux.Containers) != 0 {
		t.Errorf("host network, no containers: %v, %v", h, err)
	}
}

func TestPodSandboxMetrics(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	p := f.podConfig("scraped")
	id := f.runPod(p)
	c := containerConfig("c", images.Busybox, "sh", "-c", "nc -l -p 80 & sleep 1000 & wait")
	c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 80e6, CpuShares: 2}
	ctr := f.runContainer(id, p, c)
	f.eventually("three processes", func() bool { return strings.Count(f.exec(ctr, "ps"), "\n") >= 5 }) // ps and its title
	st, err := f.Runtime.PodSandboxStatus(f.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		t.Fatal(err)
	}
	// A packet there and one back: a port that nobody listens on.
	if conn, err := net.DialTimeout("tcp", net.JoinHostPort(st.Status.GetNetwork().GetIp(), "81"), 10*time.Second); err == nil {
		conn.Close()
		t.Error("somebody listens")
	}
	d, err := f.Runtime.ListMetricDescriptors(f.ctx, &cri.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string][]string{}
	for _, d := range d.Descriptors {
		keys[d.Name] = d.LabelKeys
	}
	r, err := f.Runtime.ListPodSandboxMetrics(f.ctx, &cri.ListPodSandboxMetricsRequest{})
	if err != nil || len(r.PodMetrics) != 1 || len(r.PodMetrics[0].ContainerMetrics) != 1 {
		t.Fatalf("%v, %v", r, err)
	}
	pod, one := r.PodMetrics[0], r.PodMetrics[0].ContainerMetrics[0]
	if pod.PodSandboxId != id || one.ContainerId != ctr {
		t.Errorf("metrics of %s and %s", pod.PodSandboxId, one.ContainerId)
	}
	got := map[string]uint64{}
	for _, m := range append(pod.Metrics, one.Metrics...) {
		if len(m.LabelValues) != len(keys[m.Name]) {
			t.Errorf("%s: labels %q for %q", m.Name, m.LabelValues, keys[m.Name])
			continue
		}
		labels := map[string]string{}
		for i, k := range keys[m.Name] {
			labels[k] = m.LabelValues[i]
		}
		container := map[bool]string{true: "POD", false: "c"}[strings.HasPrefix(m.Name, "container_network_")]
		if labels["pod"] != "scraped" || labels["namespace"] != "e2e" || labels["container"] != container {
			t.Errorf("%s: %v", m.Name, labels)
		}
		got[m.Name] = m.Value.GetValue()
	}
	for name, want := range map[string][2]uint64{ // as kubelet's e2e_node test has them
		"container_file_descriptors":               {9, 100},
		"container_fs_usage_bytes":                 {0, 1e6},
		"container_blkio_device_usage_total":       {0, 1e7},
		"container_memory_rss":                     {10 << 10, 80 << 20},
		"container_processes":                      {3, 4},
		"container_sockets":                        {1, 1},
		"container_spec_cpu_period":                {100000, 100000},
		"container_spec_cpu_shares":                {2, 2},
		"container_spec_memory_limit_bytes":        {79953920, 79998976},
		"container_threads":                        {3, 4},
		"container_ulimits_soft":                   {1, 1 << 30},
		"container_start_time_seconds":             {1e9, 1e10},
		"container_memory_events_max_total":        {0, 0},
		"container_network_receive_bytes_total":    {1, 1e7},
		"container_network_transmit_packets_total": {1, 1e6},
	} {
		if n, ok := got[name]; !ok || n < want[0] || n > want[1] {
			t.Errorf("%s = %d (%v), want %d to %d", name, n, ok, want[0], want[1])
		}
	}
}

func TestUpdatePodSandboxResources(t *testing.T) {
	f := start(t, testnode.Options{})
	update := func(r *cri.UpdatePodSandboxResourcesRequest) error {
		_, err := f.Runtime.UpdatePodSandboxResources(f.ctx, r)
		return err
	}
	id := f.runPod(f.podConfig("resized"))
	bad := &cri.LinuxContainerResources{CpuPeriod: -1}
	for _, tt := range []struct {
		r    *cri.UpdatePodSandboxResourcesRequest
		want codes.Code
	}{
		{&cri.UpdatePodSandboxResourcesRequest{}, codes.NotFound},
		{&cri.UpdatePodSandboxResourcesRequest{PodSandboxId: "0123456789abcdef"}, codes.NotFound},
		{&cri.UpdatePodSandboxResourcesRequest{PodSandboxId: id, Overhead: bad}, codes.InvalidArgument},
		{&cri.UpdatePodSandboxResourcesRequest{PodSandboxId: id, Resources: bad}, codes.InvalidArgument},
		{&cri.UpdatePodSandboxResourcesRequest{PodSandboxId: id}, codes.OK},
		{&cri.UpdatePodSandboxResourcesRequest{PodSandboxId: id, Overhead: &cri.LinuxContainerResources{MemoryLimitInBytes: 1 << 20},
			Resources: &cri.LinuxContainerResources{CpuQuota: 70707, HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB"}}}}, codes.OK},
	} {
		if err := update(tt.r); status.Code(err) != tt.want {
			t.Errorf("%v: %v", tt.r, err)
		}
	}
	f.restart("with new resources")
	r, err := f.Runtime.PodSandboxStatus(f.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	if err != nil || !strings.Contains(r.Info["info"], "70707") || !strings.Contains(r.Info["info"], "1048576") {
		t.Errorf("status: %v, %v", r.GetInfo()["info"], err)
	}
	if _, err := f.Runtime.StopPodSandbox(f.ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		t.Fatal(err)
	}
	if err := update(&cri.UpdatePodSandboxResourcesRequest{PodSandboxId: id}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("stopped: %v", err)
	}
}
