package spec

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func wire(f *testing.F, m proto.Message) []byte {
	f.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// full has a value in every kind of field.
func full() (*runtimeapi.PodSandboxConfig, *runtimeapi.ContainerConfig) {
	ids := []*runtimeapi.IDMapping{{HostId: 131072, Length: 65536}}
	ns := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER, UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}}
	one := &runtimeapi.Int64Value{Value: 1}
	seccomp := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	return &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"}, Hostname: "h", Annotations: map[string]string{"a": "b"},
			Linux: &runtimeapi.LinuxPodSandboxConfig{Sysctls: map[string]string{"net.ipv4.ip_forward": "1"},
				SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: ns, RunAsUser: one, RunAsGroup: one, SupplementalGroups: []int64{5}, Seccomp: seccomp}},
		}, &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: "i"}, Command: []string{"/c"}, Args: []string{"a"}, WorkingDir: "/w",
			Envs:    []*runtimeapi.KeyValue{{Key: "K", Value: []byte("v")}},
			Mounts:  []*runtimeapi.Mount{{ContainerPath: "/m", HostPath: "/tmp", Readonly: true, RecursiveReadOnly: true, UidMappings: ids, GidMappings: ids, MountOptions: []string{"noexec"}}},
			Devices: []*runtimeapi.Device{{HostPath: "/dev/null", ContainerPath: "/dev/n", Permissions: "rwm"}}, CDIDevices: []*runtimeapi.CDIDevice{{Name: "v/c=d"}},
			Linux: &runtimeapi.LinuxContainerConfig{
				Resources: &runtimeapi.LinuxContainerResources{CpuShares: 2, CpuQuota: -1, CpuPeriod: 1000, MemoryLimitInBytes: 1 << 20, OomScoreAdj: 5, CpusetCpus: "0",
					HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 1}}, Unified: map[string]string{"memory.high": "max"}},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: ns, RunAsUser: one, Capabilities: &runtimeapi.Capability{AddCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"CHOWN"}},
					Seccomp: seccomp, MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"}, SupplementalGroupsPolicy: runtimeapi.SupplementalGroupsPolicy_Strict},
			},
		}
}

// Whatever a request says, the answer is a spec that can be written down, or an error.
func FuzzContainer(f *testing.F) {
	pod, ctr := full()
	f.Add(wire(f, pod), wire(f, ctr), []byte("root:x:0:0::/:\nu:x:7:7::/:\n"), "u", false)
	f.Add([]byte{}, []byte{}, []byte{}, "", true)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, pod, ctr, passwd []byte, user string, privileged bool) {
		in := &Input{ID: "c", SandboxID: "s", Host: &Host{CgroupVersion: 2, IDMappedMounts: true, RecursiveReadOnly: true, UserNamespaces: true, OOMScoreAdjMin: -1000},
			Pod: &runtimeapi.PodSandboxConfig{}, Container: &runtimeapi.ContainerConfig{}, Image: &ocispec.ImageConfig{User: user},
			Namespaces: Namespaces{Net: "/n", IPC: "/i", UTS: "/u", PID: "/p", User: "/s"}, PrivilegedPod: privileged,
			ImageMount:  func(*runtimeapi.Mount, string) (string, error) { return dir, nil },
			HostDevices: func() ([]specs.LinuxDevice, error) { return nil, nil },
			CDI:         func(*specs.Spec, []string) error { return nil }}
		if proto.Unmarshal(pod, in.Pod) != nil || proto.Unmarshal(ctr, in.Container) != nil {
			return
		}
		for _, p := range []*runtimeapi.SecurityProfile{in.Container.GetLinux().GetSecurityContext().GetSeccomp()} {
			if p != nil {
				p.LocalhostRef = "" // would be read from this machine, a device perhaps
			}
		}
		root := accountsRoot(t, passwd)
		defer root.Close()
		in.Files = FilesOf(root)
		s, err := Container(in)
		if err == nil {
			_, err = json.Marshal(s)
			if err != nil {
				t.Error(err)
			}
		}
	})
}

func FuzzSandbox(f *testing.F) {
	pod, _ := full()
	f.Add(wire(f, pod))
	f.Fuzz(func(t *testing.T, b []byte) {
		in := &SandboxInput{ID: "s", Host: &Host{CgroupVersion: 2, IDMappedMounts: true, UserNamespaces: true}, Pod: &runtimeapi.PodSandboxConfig{}, NetNS: "/n"}
		if proto.Unmarshal(b, in.Pod) != nil {
			return
		}
		if p := in.Pod.GetLinux().GetSecurityContext().GetSeccomp(); p != nil {
			p.LocalhostRef = ""
		}
		if s, err := Sandbox(in); err == nil {
			if _, err := json.Marshal(s); err != nil {
				t.Error(err)
			}
		}
	})
}

func accountsRoot(t *testing.T, passwd []byte) *os.Root {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"passwd", "group"} {
		if err := os.WriteFile(filepath.Join(dir, "etc", name), passwd, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// An image's accounts never make somebody root who is not.
func FuzzAccounts(f *testing.F) {
	f.Add([]byte("root:x:0:0::/:\nu:x:7:7::/home:\n"), "u:7")
	f.Add([]byte("u:x::\n:::::::\n\x00"), "u")
	f.Fuzz(func(t *testing.T, passwd []byte, user string) {
		root := accountsRoot(t, passwd)
		defer root.Close()
		a := accounts{FilesOf(root)}
		u, err := a.resolve(user)
		if err != nil {
			return
		}
		if u.uid > 1<<31-1 || u.gid > 1<<31-1 {
			t.Errorf("%q became %+v", user, u)
		}
		if _, err := a.groupsOf(u); err != nil {
			return
		}
	})
}
