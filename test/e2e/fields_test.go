package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// fields checks values field by field, each as a test of the field's name.
type fields struct {
	t *testing.T
}

// is wants two values to be equal.
func (c fields) is(name string, got, want any) {
	c.t.Helper()
	equal := reflect.DeepEqual(got, want)
	if a, ok := got.(proto.Message); ok {
		equal = proto.Equal(a, want.(proto.Message))
	}
	c.that(name, equal, fmt.Sprintf("got %v, want %v", got, want))
}

// that wants something to be so.
func (c fields) that(name string, ok bool, detail any) {
	c.t.Helper()
	c.t.Run(name, func(t *testing.T) {
		if !ok {
			t.Errorf("%v", detail)
		}
	})
}

// The fields of pods: what was asked for is done, and told again as it was asked.
func TestPodFields(t *testing.T) {
	f := start(t, testnode.Options{})
	c := fields{t: t}
	p := f.podConfig("fields")
	p.Metadata.Attempt = 3
	p.Hostname = "called-otherwise"
	p.Labels = map[string]string{"io.kubernetes.pod.uid": "u", "empty": ""}
	p.Annotations = map[string]string{"a": "b\nc", "é": "ü"}
	p.DnsConfig = &cri.DNSConfig{Servers: []string{"10.96.0.10", "fd00::10"}, Searches: []string{"a.test", "b.test"}, Options: []string{"ndots:5", "edns0"}}
	p.Linux.Sysctls = map[string]string{"net.ipv4.ip_local_port_range": "20000 30000"}
	p.Linux.Overhead, p.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 10}, &cri.LinuxContainerResources{CpuShares: 20}
	id := f.runPod(p)
	began := time.Now()
	f.pull(images.Busybox)
	ctr := f.runContainer(id, p, containerConfig("c", images.Busybox, "sleep", "1000"))

	r, err := f.Runtime.PodSandboxStatus(f.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	s := r.Status
	c.is("PodSandboxStatus.id", s.Id, id)
	c.is("PodSandboxStatus.metadata", s.Metadata, p.Metadata)
	c.is("PodSandboxStatus.state", s.State, cri.PodSandboxState_SANDBOX_READY)
	c.that("PodSandboxStatus.created_at", s.CreatedAt > began.Add(-time.Minute).UnixNano() && s.CreatedAt < time.Now().UnixNano(), s.CreatedAt)
	c.that("PodSandboxStatus.network", strings.HasPrefix(s.Network.GetIp(), "10.85."), s.Network)
	c.is("PodSandboxStatus.linux", s.Linux.GetNamespaces().GetOptions(), p.Linux.SecurityContext.NamespaceOptions)
	c.is("PodSandboxStatus.labels", s.Labels, p.Labels)
	c.is("PodSandboxStatus.annotations", s.Annotations, p.Annotations)
	c.is("PodSandboxStatus.runtime_handler", s.RuntimeHandler, "")
	c.that("PodSandboxStatusResponse.info", strings.Contains(fmt.Sprint(r.Info), "pid"), r.Info)
	c.that("PodSandboxStatusResponse.containers_statuses", len(r.ContainersStatuses) == 1 && r.ContainersStatuses[0].Id == ctr, r.ContainersStatuses)
	c.that("PodSandboxStatusResponse.timestamp", r.Timestamp > s.CreatedAt, r.Timestamp)

	c.is("PodSandboxConfig.hostname", f.exec(ctr, "hostname; cat /etc/hostname"), "called-otherwise\ncalled-otherwise\n")
	_, err = os.Stat(p.LogDirectory)
	c.that("PodSandboxConfig.log_directory", err == nil, err)
	conf := f.exec(ctr, "cat /etc/resolv.conf")
	c.that("DNSConfig.servers", strings.Contains(conf, "nameserver 10.96.0.10\nnameserver fd00::10\n"), conf)
	c.that("DNSConfig.searches", strings.Contains(conf, "search a.test b.test\n"), conf)
	c.that("DNSConfig.options", strings.Contains(conf, "options ndots:5 edns0\n"), conf)
	c.is("LinuxPodSandboxConfig.sysctls", f.exec(ctr, "cat /proc/sys/net/ipv4/ip_local_port_range"), "20000\t30000\n")
	cgroup := f.exec(ctr, "cat /proc/1/cgroup")
	c.that("LinuxPodSandboxConfig.cgroup_parent", strings.Contains(cgroup, "/") && f.below(testns.CgroupParent()+"/fields", id), cgroup)

	list := func(filter *cri.PodSandboxFilter) []*cri.PodSandbox {
		t.Helper()
		r, err := f.Runtime.ListPodSandbox(f.ctx, &cri.ListPodSandboxRequest{Filter: filter})
		if err != nil {
			t.Fatal(err)
		}
		return r.Items
	}
	other := f.runPod(f.podConfig("other"))
	c.that("PodSandboxFilter.id", len(list(&cri.PodSandboxFilter{Id: other})) == 1 && len(list(&cri.PodSandboxFilter{Id: "none"})) == 0, nil)
	c.that("PodSandboxFilter.state", len(list(&cri.PodSandboxFilter{State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_NOTREADY}})) == 0, nil)
	c.that("PodSandboxFilter.label_selector", len(list(&cri.PodSandboxFilter{LabelSelector: map[string]string{"empty": "", "io.kubernetes.pod.uid": "u"}})) == 1 &&
		len(list(&cri.PodSandboxFilter{LabelSelector: map[string]string{"missing": ""}})) == 0, nil)
	item := list(&cri.PodSandboxFilter{Id: id})[0]
	c.is("PodSandbox", item, &cri.PodSandbox{Id: id, Metadata: p.Metadata, State: cri.PodSandboxState_SANDBOX_READY, CreatedAt: s.CreatedAt, Labels: p.Labels, Annotations: p.Annotations})
	for _, id := range []string{id, other} {
		f.removePod(id)
	}
	c.that("StopPodSandboxRequest.pod_sandbox_id", len(list(nil)) == 0, nil)
}

// below tells whether the container id has a cgroup right below parent.
func (f *fixture) below(parent, id string) bool {
	for _, pattern := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
		if found, _ := filepath.Glob(pattern + parent + "/*" + id + "*"); len(found) > 0 {
			return true
		}
	}
	return false
}

// The fields of containers.
func TestContainerFields(t *testing.T) {
	f := start(t, testnode.Options{})
	c := fields{t: t}
	f.pull(images.Busybox)
	p := f.podConfig("fields")
	id := f.runPod(p)
	config := containerConfig("c", images.Busybox, "sh", "-c", "trap 'exit 42' USR1; sleep 1000 & wait")
	config.Metadata.Attempt = 5
	config.Image = &cri.ImageSpec{Image: f.imageID(images.Busybox), UserSpecifiedImage: registry + images.Busybox}
	config.Labels = map[string]string{"io.kubernetes.container.name": "c"}
	config.Annotations = map[string]string{"io.kubernetes.container.hash": "abc"}
	config.LogPath = "c/5.log"
	config.WorkingDir = "/made/for/it"
	config.Envs = []*cri.KeyValue{{Key: "BYTES", Value: []byte("\xff\xfe")}}
	config.StopSignal = cri.Signal_SIGNAL_SIGUSR1
	config.Mounts = []*cri.Mount{{ContainerPath: "/given", HostPath: f.Dir, Readonly: true}}
	config.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 1024, CpuPeriod: 100000, CpuQuota: 50000, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 900, CpusetCpus: "0"}
	config.Linux.SecurityContext.RunAsUser, config.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 1234}, &cri.Int64Value{Value: 5678}
	config.Linux.SecurityContext.SupplementalGroups = []int64{42}
	config.Linux.SecurityContext.NoNewPrivs = true
	ctr := f.runContainer(id, p, config)
	status := func() *cri.ContainerStatus {
		t.Helper()
		r, err := f.Runtime.ContainerStatus(f.ctx, &cri.ContainerStatusRequest{ContainerId: ctr, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status
	}
	s := status()
	c.is("ContainerStatus.id", s.Id, ctr)
	c.is("ContainerStatus.metadata", s.Metadata, config.Metadata)
	c.is("ContainerStatus.state", s.State, cri.ContainerState_CONTAINER_RUNNING)
	c.that("ContainerStatus.created_at", s.CreatedAt > 0 && s.CreatedAt < time.Now().UnixNano(), s.CreatedAt)
	c.that("ContainerStatus.started_at", s.StartedAt >= s.CreatedAt, s.StartedAt)
	c.is("ContainerStatus.image", s.Image, &cri.ImageSpec{Image: registry + images.Busybox, UserSpecifiedImage: registry + images.Busybox})
	c.that("ContainerStatus.image_ref", strings.Contains(s.ImageRef, "busybox@sha256:"), s.ImageRef)
	c.is("ContainerStatus.image_id", s.ImageId, config.Image.Image)
	c.is("ContainerStatus.labels", s.Labels, config.Labels)
	c.is("ContainerStatus.annotations", s.Annotations, config.Annotations)
	c.that("ContainerStatus.mounts", len(s.Mounts) == 1 && proto.Equal(s.Mounts[0], config.Mounts[0]), s.Mounts)
	c.is("ContainerStatus.log_path", s.LogPath, filepath.Join(p.LogDirectory, "c/5.log"))
	c.is("ContainerStatus.resources", s.Resources.GetLinux(), config.Linux.Resources)
	c.that("ContainerStatus.user", s.User.GetLinux().GetUid() == 1234 && s.User.Linux.Gid == 5678 && slices.Equal(slices.Sorted(slices.Values(s.User.Linux.SupplementalGroups)), []int64{42, 5678}), s.User)
	c.is("ContainerStatus.stop_signal", s.StopSignal, config.StopSignal)

	c.is("ContainerConfig.working_dir", f.exec(ctr, "pwd"), "/made/for/it\n")
	c.is("ContainerConfig.envs", f.exec(ctr, "printf %s \"$BYTES\" | od -An -tx1"), " ff fe\n")
	c.is("LinuxContainerSecurityContext.no_new_privs", f.exec(ctr, "grep NoNewPrivs /proc/1/status"), "NoNewPrivs:\t1\n")
	c.is("LinuxContainerResources.oom_score_adj", f.exec(ctr, "cat /proc/1/oom_score_adj"), "900\n")
	c.is("LinuxContainerResources.cpuset_cpus", f.exec(ctr, "grep Cpus_allowed_list /proc/1/status"), "Cpus_allowed_list:\t0\n")

	// A field that is left out, or empty, stays as it is.
	if _, err := f.Runtime.UpdateContainerResources(f.ctx, &cri.UpdateContainerResourcesRequest{ContainerId: ctr, Linux: &cri.LinuxContainerResources{CpuQuota: 70000}}); err != nil {
		t.Error(err)
	}
	want := proto.Clone(config.Linux.Resources).(*cri.LinuxContainerResources)
	want.CpuQuota = 70000
	c.is("UpdateContainerResourcesRequest.linux", status().Resources.GetLinux(), want)

	list := func(filter *cri.ContainerFilter) []*cri.Container {
		t.Helper()
		r, err := f.Runtime.ListContainers(f.ctx, &cri.ListContainersRequest{Filter: filter})
		if err != nil {
			t.Fatal(err)
		}
		return r.Containers
	}
	f.runContainer(id, p, containerConfig("other", images.Busybox, "sleep", "1000"))
	c.that("ContainerFilter.id", len(list(&cri.ContainerFilter{Id: ctr})) == 1 && len(list(&cri.ContainerFilter{Id: "none"})) == 0, nil)
	c.that("ContainerFilter.state", len(list(&cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_EXITED}})) == 0, nil)
	c.that("ContainerFilter.pod_sandbox_id", len(list(&cri.ContainerFilter{PodSandboxId: id})) == 2 && len(list(&cri.ContainerFilter{PodSandboxId: "none"})) == 0, nil)
	c.that("ContainerFilter.label_selector", len(list(&cri.ContainerFilter{LabelSelector: config.Labels})) == 1, nil)
	c.is("Container", list(&cri.ContainerFilter{Id: ctr})[0], &cri.Container{Id: ctr, PodSandboxId: id, Metadata: config.Metadata, Image: s.Image, ImageRef: s.ImageRef,
		State: s.State, CreatedAt: s.CreatedAt, Labels: config.Labels, Annotations: config.Annotations, ImageId: s.ImageId})

	began := time.Now()
	if _, err := f.Runtime.StopContainer(f.ctx, &cri.StopContainerRequest{ContainerId: ctr, Timeout: 60}); err != nil {
		t.Error(err)
	}
	s = status()
	c.that("StopContainerRequest.timeout", time.Since(began) < 50*time.Second, "SIGUSR1 did not stop it at once")
	c.is("ContainerConfig.stop_signal", s.ExitCode, int32(42))
	c.is("ContainerStatus.exit_code", s.ExitCode, int32(42))
	c.is("ContainerStatus.reason", s.Reason, "Error")
	c.that("ContainerStatus.finished_at", s.FinishedAt >= s.StartedAt, s.FinishedAt)
	f.removePod(id)
}

// The fields of images.
func TestImageFields(t *testing.T) {
	f := start(t, testnode.Options{})
	c := fields{t: t}
	pulled, err := f.Image.PullImage(f.ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: registry + images.DemoWeb}})
	if err != nil {
		t.Fatal(err)
	}
	f.pull(images.Busybox)
	r, err := f.Image.ImageStatus(f.ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: registry + images.DemoWeb}, Verbose: true})
	if err != nil || r.Image == nil {
		t.Fatalf("%v %v", r, err)
	}
	i := r.Image
	c.is("PullImageResponse.image_ref", pulled.ImageRef, i.Id)
	c.that("Image.id", strings.HasPrefix(i.Id, "sha256:"), i.Id)
	c.is("Image.repo_tags", i.RepoTags, []string{registry + images.DemoWeb})
	c.that("Image.repo_digests", len(i.RepoDigests) == 1 && strings.HasPrefix(i.RepoDigests[0], "registry.k8s.io/demo/web@sha256:"), i.RepoDigests)
	c.that("Image.size", i.Size > 1<<20, i.Size)
	c.that("Image.uid", i.Uid == nil, i.Uid)
	c.is("Image.username", i.Username, "www-data")
	c.is("Image.pinned", i.Pinned, false)
	c.that("ImageStatusResponse.info", len(r.Info) > 0, r.Info)
	for name, ref := range map[string]string{"tag": i.RepoTags[0], "digest": i.RepoDigests[0], "id": i.Id} {
		got, err := f.Image.ImageStatus(f.ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
		c.that("ImageSpec.image/"+name, err == nil && got.GetImage().GetId() == i.Id, err)
		list, err := f.Image.ListImages(f.ctx, &cri.ListImagesRequest{Filter: &cri.ImageFilter{Image: &cri.ImageSpec{Image: ref}}})
		c.that("ImageFilter.image/"+name, err == nil && len(list.Images) == 1 && proto.Equal(list.Images[0], i), err)
	}
	none, err := f.Image.ImageStatus(f.ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: "registry.k8s.io/no/such:1"}})
	c.that("ImageStatusResponse.image", err == nil && none.Image == nil, err)
	fs, err := f.Image.ImageFsInfo(f.ctx, &cri.ImageFsInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	c.that("ImageFsInfoResponse.image_filesystems", len(fs.ImageFilesystems) == 1 && fs.ImageFilesystems[0].GetUsedBytes().GetValue() > 1<<20, fs)
	c.that("ImageFsInfoResponse.container_filesystems", len(fs.ContainerFilesystems) == 1, fs)
	c.that("FilesystemUsage.timestamp", fs.ImageFilesystems[0].Timestamp > 0, fs)
	c.that("FilesystemUsage.inodes_used", fs.ImageFilesystems[0].GetInodesUsed().GetValue() > 10, fs)
	_, err = os.Stat(fs.ImageFilesystems[0].GetFsId().GetMountpoint())
	c.that("FilesystemIdentifier.mountpoint", err == nil, err)
	if _, err := f.Image.RemoveImage(f.ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: i.Id}}); err != nil {
		t.Error(err)
	}
	list, err := f.Image.ListImages(f.ctx, &cri.ListImagesRequest{})
	c.that("RemoveImageRequest.image", err == nil && len(list.Images) == 1, err)
}

// What the runtime says of itself.
func TestRuntimeFields(t *testing.T) {
	f := start(t, testnode.Options{})
	c := fields{t: t}
	v, err := f.Runtime.Version(f.ctx, &cri.VersionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	c.is("VersionResponse.version", v.Version, "0.1.0") // kubelet accepts no other
	c.is("VersionResponse.runtime_name", v.RuntimeName, "cri-server")
	c.that("VersionResponse.runtime_version", strings.Count(v.RuntimeVersion, ".") >= 2, v.RuntimeVersion)
	c.is("VersionResponse.runtime_api_version", v.RuntimeApiVersion, "v1")
	s, err := f.Runtime.Status(f.ctx, &cri.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	conditions := map[string]bool{}
	for _, x := range s.Status.Conditions {
		conditions[x.Type] = x.Status
	}
	c.that("RuntimeStatus.conditions", conditions["RuntimeReady"] && conditions["NetworkReady"], conditions)
	handlers := map[string]*cri.RuntimeHandlerFeatures{}
	for _, h := range s.RuntimeHandlers {
		handlers[h.Name] = h.Features
	}
	c.that("StatusResponse.runtime_handlers", handlers[""] != nil && handlers["native"] != nil && len(handlers) == len(s.RuntimeHandlers), handlers)
	c.that("RuntimeHandlerFeatures.recursive_read_only_mounts", handlers[""].GetRecursiveReadOnlyMounts(), handlers)
	c.that("RuntimeHandlerFeatures.user_namespaces", handlers[""].GetUserNamespaces(), handlers)
	c.that("RuntimeFeatures.supplemental_groups_policy", s.Features.GetSupplementalGroupsPolicy(), s.Features)
	c.that("RuntimeFeatures.mount_options", s.Features.GetMountOptions(), s.Features)
	c.that("StatusResponse.info", strings.Contains(s.Info["config"], "{"), s.Info)
	r, err := f.Runtime.RuntimeConfig(f.ctx, &cri.RuntimeConfigRequest{})
	c.that("LinuxRuntimeConfiguration.cgroup_driver", err == nil && r.GetLinux().GetCgroupDriver() == cri.CgroupDriver_CGROUPFS, err)
	_, err = f.Runtime.UpdateRuntimeConfig(f.ctx, &cri.UpdateRuntimeConfigRequest{RuntimeConfig: &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: "10.86.0.0/24"}}})
	if err := f.WarmUp(f.ctx); err != nil { // the new range gets its own rules, which stay
		t.Fatal(err)
	}
	f.before = testnode.Take()
	id := f.runPod(f.podConfig("cidr"))
	p, perr := f.Runtime.PodSandboxStatus(f.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
	c.that("NetworkConfig.pod_cidr", err == nil && perr == nil && strings.HasPrefix(p.GetStatus().GetNetwork().GetIp(), "10.86.0."), p)
	f.removePod(id)
}
