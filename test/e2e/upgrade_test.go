package e2e

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

var update = flag.Bool("update", false, "write the state of the present format anew")

// stateFixture is what a cri-server has left in its root directory when the machine was switched off: records, CNI results
// and leases, of version 1 each; and what it said of the pods and containers before. It stays as it is when a format gets
// another version: then it shows that the state of an older cri-server is still read.
const stateFixture = "testdata/state-v1"

// stateDirs are the parts of the root directory that are kept. The image store has a fixture of its own (pkg/imagestore).
var stateDirs = []string{"sandboxes", "containers", "cni", "networks"}

// said is what a server says of an object.
type said struct {
	pods       map[string]*cri.PodSandboxStatus
	containers map[string]*cri.ContainerStatus
}

func (f *fixture) said() said {
	f.t.Helper()
	s := said{map[string]*cri.PodSandboxStatus{}, map[string]*cri.ContainerStatus{}}
	pods, err := f.Runtime.ListPodSandbox(f.ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		f.t.Fatal(err)
	}
	for _, p := range pods.Items {
		r, err := f.Runtime.PodSandboxStatus(f.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.Id})
		if err != nil {
			f.t.Fatal(err)
		}
		s.pods[p.Id] = r.Status
	}
	containers, err := f.Runtime.ListContainers(f.ctx, &cri.ListContainersRequest{})
	if err != nil {
		f.t.Fatal(err)
	}
	for _, c := range containers.Containers {
		r, err := f.Runtime.ContainerStatus(f.ctx, &cri.ContainerStatusRequest{ContainerId: c.Id})
		if err != nil {
			f.t.Fatal(err)
		}
		s.containers[c.Id] = r.Status
	}
	return s
}

// afterReboot is what is to be said of the same objects when the machine was restarted meanwhile.
func (s said) afterReboot() {
	for _, p := range s.pods {
		p.State = cri.PodSandboxState_SANDBOX_NOTREADY
	}
	for _, c := range s.containers {
		if c.State != cri.ContainerState_CONTAINER_EXITED {
			c.State, c.ExitCode, c.Reason, c.Message = cri.ContainerState_CONTAINER_EXITED, 255, "Unknown", "the machine was restarted"
		}
	}
}

func (s said) write(t *testing.T, dir string) {
	for id, p := range s.pods {
		writeMessage(t, filepath.Join(dir, "pod-"+id), p)
	}
	for id, c := range s.containers {
		writeMessage(t, filepath.Join(dir, "container-"+id), c)
	}
}

func writeMessage(t *testing.T, name string, m proto.Message) {
	b, err := protojson.Marshal(m)
	var out bytes.Buffer
	if err == nil {
		err = json.Indent(&out, b, "", "  ") // protojson's own blanks are not the same each time
	}
	if err == nil {
		err = os.WriteFile(name+".json", append(out.Bytes(), '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func readSaid(t *testing.T, dir string) said {
	s := said{map[string]*cri.PodSandboxStatus{}, map[string]*cri.ContainerStatus{}}
	names, _ := filepath.Glob(filepath.Join(dir, "*.json"))
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		kind, id, _ := strings.Cut(strings.TrimSuffix(filepath.Base(name), ".json"), "-")
		if kind == "pod" {
			s.pods[id] = &cri.PodSandboxStatus{}
			err = protojson.Unmarshal(b, s.pods[id])
		} else {
			s.containers[id] = &cri.ContainerStatus{}
			err = protojson.Unmarshal(b, s.containers[id])
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	return s
}

// kept copies the kept part of a root directory.
func kept(t *testing.T, from, to string) {
	for _, dir := range stateDirs {
		err := filepath.WalkDir(filepath.Join(from, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(from, path)
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil || len(b) == 0 { // locks
				return err
			}
			at := filepath.Join(to, rel)
			if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
				return err
			}
			return os.WriteFile(at, b, 0o600)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// leavePods runs pods that use much of what a record can hold, and leaves them.
func (f *fixture) leavePods() {
	f.pull(images.Busybox)
	pod := f.podConfig("full")
	pod.Annotations = map[string]string{"note": "two\nlines"}
	pod.PortMappings = []*cri.PortMapping{{Protocol: cri.Protocol_TCP, ContainerPort: 80, HostPort: 11997}}
	pod.LogDirectory = "/run/left/logs"
	pod.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80"}
	pod.Linux.Overhead = &cri.LinuxContainerResources{CpuShares: 100}
	pod.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 200, MemoryLimitInBytes: 1 << 28}
	id := f.runPod(pod)
	c := containerConfig("runs", images.Busybox, "sleep", "1000")
	c.Envs = []*cri.KeyValue{{Key: "LATIN", Value: []byte("caf\xe9")}}
	c.Labels, c.Annotations = map[string]string{"l": "1"}, map[string]string{"a": "2"}
	c.WorkingDir, c.LogPath = "/tmp", "runs.log"
	c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 300, MemoryLimitInBytes: 1 << 26, OomScoreAdj: 100}
	c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	c.Linux.SecurityContext.Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}}
	c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
	c.Linux.SecurityContext.SupplementalGroups = []int64{7}
	f.runContainer(id, pod, c)
	ended := f.runContainer(id, pod, containerConfig("ended", images.Busybox, "sh", "-c", "exit 3"))
	f.eventually("a container has ended", func() bool { return f.containerStatus(ended).State == cri.ContainerState_CONTAINER_EXITED })
	r, err := f.Runtime.CreateContainer(f.ctx, &cri.CreateContainerRequest{PodSandboxId: id, SandboxConfig: pod,
		Config: containerConfig("created", images.Busybox, "true")})
	if err != nil {
		f.t.Fatal(err)
	}
	f.ids = append(f.ids, r.ContainerId)
	host := f.podConfig("host")
	host.Hostname, host.LogDirectory = "", "/run/left/host"
	host.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_POD}
	f.runPod(host)
	stopped := f.podConfig("stopped")
	stopped.LogDirectory = "/run/left/stopped"
	if _, err := f.Runtime.StopPodSandbox(f.ctx, &cri.StopPodSandboxRequest{PodSandboxId: f.runPod(stopped)}); err != nil {
		f.t.Fatal(err)
	}
}

// TestOldState starts on what an earlier version has left: all is listed as it was, ended with the machine, and can be
// removed; its addresses are free again.
func TestOldState(t *testing.T) {
	f := start(t, testnode.Options{Dir: "/run/left/node"})
	root := filepath.Join(f.Dir, "root")
	if *update {
		f.leavePods()
		if err := os.RemoveAll(stateFixture); err != nil {
			t.Fatal(err)
		}
		kept(t, root, stateFixture)
		for _, kind := range []string{"sandboxes", "containers"} {
			names, _ := filepath.Glob(filepath.Join(stateFixture, kind, "*.json"))
			for _, name := range names { // of another boot than any
				rewrite(t, name, func(envelope, _ map[string]json.RawMessage) {
					envelope["boot_id"] = json.RawMessage(`"00000000-0000-4000-8000-000000000000"`)
				})
			}
		}
		f.said().write(t, stateFixture)
		return
	}
	if err := f.KillServer(); err != nil {
		t.Fatal(err)
	}
	kept(t, stateFixture, root)
	if err := f.StartServer(f.ctx); err != nil {
		t.Fatal(err)
	}
	f.pull(images.Busybox) // whose name is part of what is said
	want, got := readSaid(t, stateFixture), f.said()
	if len(want.pods) != 3 || len(want.containers) != 3 {
		t.Fatalf("the fixture has %d pods, %d containers", len(want.pods), len(want.containers))
	}
	want.afterReboot()
	for id, c := range want.containers {
		if now := got.containers[id]; now != nil && c.FinishedAt == 0 {
			c.FinishedAt = now.FinishedAt
		}
	}
	if diff := cmp.Diff(want.pods, got.pods, protocmp.Transform()); diff != "" {
		t.Errorf("pods:\n%s", diff)
	}
	if diff := cmp.Diff(want.containers, got.containers, protocmp.Transform()); diff != "" {
		t.Errorf("containers:\n%s", diff)
	}
	for id := range want.pods {
		f.ids = append(f.ids, id)
		f.removePod(id)
	}
	if left := f.listing(); len(left) != 1 { // the image
		t.Errorf("left: %q", left)
	}
	for _, dir := range []string{"sandboxes", "containers", "cni/results"} {
		left, _ := filepath.Glob(filepath.Join(root, dir, "[^.]*")) // hidden: files that are kept for the next records
		if len(left) > 0 {
			t.Errorf("%s: %v", dir, left)
		}
	}
	f.othersGoOn("new")
}

// rewrite changes a record on disk: the envelope, and its data.
func rewrite(t *testing.T, name string, change func(envelope, data map[string]json.RawMessage)) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(b), "\n") // record, checksum, record, checksum, ""
	envelope, data := map[string]json.RawMessage{}, map[string]json.RawMessage{}
	if err := json.Unmarshal([]byte(lines[len(lines)-3]), &envelope); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(envelope["data"], &data); err != nil {
		t.Fatal(err)
	}
	change(envelope, data)
	if envelope["data"], err = json.Marshal(data); err != nil {
		t.Fatal(err)
	}
	line, err := json.Marshal(envelope)
	if err != nil {
		t.Fatal(err)
	}
	line = append(line, '\n')
	line = fmt.Appendf(line, "crc32c:%08x\n", crc32.Checksum(line, crc32.MakeTable(crc32.Castagnoli)))
	if err := os.WriteFile(name, line, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestNewerState: after a downgrade, fields that a newer server has written are passed over, and what has a version that
// this one does not know is listed with the reason, is not touched, and can be removed.
func TestNewerState(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	known, newer := f.podConfig("known"), f.podConfig("newer")
	k, n := f.runPod(known), f.runPod(newer)
	kc := f.runContainer(k, known, containerConfig("c", images.Busybox, "sleep", "1000"))
	nc := f.runContainer(n, newer, containerConfig("c", images.Busybox, "sleep", "1000"))
	pid := f.pidOf(nc)
	if err := f.KillServer(); err != nil {
		t.Fatal(err)
	}
	for kind, ids := range map[string][]string{"sandboxes": {k, n}, "containers": {kc, nc}} {
		for i, id := range ids {
			rewrite(t, filepath.Join(f.Dir, "root", kind, id+".json"), func(envelope, data map[string]json.RawMessage) {
				envelope["since_version_9"], data["since_version_9"] = json.RawMessage(`{"a":[1,null]}`), json.RawMessage(`["x"]`)
				if i == 1 {
					envelope["version"] = json.RawMessage("9")
				}
			})
		}
	}
	if err := f.StartServer(f.ctx); err != nil {
		t.Fatal(err)
	}
	if out := f.exec(kc, "echo there"); out != "there\n" {
		t.Errorf("%q", out)
	}
	st, err := f.Runtime.ContainerStatus(f.ctx, &cri.ContainerStatusRequest{ContainerId: nc})
	if err != nil || st.Status.State != cri.ContainerState_CONTAINER_UNKNOWN || !strings.Contains(st.Status.Message, "a newer cri-server wrote it") {
		t.Errorf("%v %v", st, err)
	}
	pod, err := f.Runtime.PodSandboxStatus(f.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: n})
	if err != nil || pod.Status.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("%v %v", pod, err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
		t.Errorf("what runs was touched: %v", err)
	}
	f.removePod(n)
	f.removePod(k)
}
