package spec

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func sandboxInput(t *testing.T) (*SandboxInput, *runtimeapi.LinuxSandboxSecurityContext) {
	in := input(t)
	return &SandboxInput{ID: "s1", Host: in.Host, Pod: in.Pod, NetNS: "/run/netns/x", CgroupPath: "/pod/s1"}, in.Pod.Linux.SecurityContext
}

func TestSandbox(t *testing.T) {
	type sc = runtimeapi.LinuxSandboxSecurityContext
	const node, container, target = runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_TARGET
	mount, cgroup := specs.LinuxNamespace{Type: specs.MountNamespace}, specs.LinuxNamespace{Type: specs.CgroupNamespace}
	net, uts := specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: "/run/netns/x"}, specs.LinuxNamespace{Type: specs.UTSNamespace}
	ipc, pid := specs.LinuxNamespace{Type: specs.IPCNamespace}, specs.LinuxNamespace{Type: specs.PIDNamespace}
	spaces := func(s *specs.Spec) any { return s.Linux.Namespaces }
	user := func(s *specs.Spec) any { return s.Process.User }
	sysctl := func(k, v string) func(*SandboxInput, *sc) {
		return func(in *SandboxInput, _ *sc) { in.Pod.Linux.Sysctls = map[string]string{k: v} }
	}
	for _, c := range []struct {
		name string
		set  func(*SandboxInput, *sc)
		get  func(*specs.Spec) any
		want any
		err  error
	}{
		{"namespaces", nil, spaces, []specs.LinuxNamespace{mount, cgroup, net, uts, ipc, pid}, nil},
		{"network NODE", func(_ *SandboxInput, c *sc) { c.NamespaceOptions.Network = node }, spaces, []specs.LinuxNamespace{mount, cgroup, ipc, pid}, nil},
		{"ipc NODE", func(_ *SandboxInput, c *sc) { c.NamespaceOptions.Ipc = node }, spaces, []specs.LinuxNamespace{mount, cgroup, net, uts, pid}, nil},
		{"pid NODE", func(_ *SandboxInput, c *sc) { c.NamespaceOptions.Pid = node }, spaces, []specs.LinuxNamespace{mount, cgroup, net, uts, ipc}, nil},
		{"pid CONTAINER", func(_ *SandboxInput, c *sc) { c.NamespaceOptions.Pid = container }, spaces, []specs.LinuxNamespace{mount, cgroup, net, uts, ipc, pid}, nil},
		{"pid TARGET", func(_ *SandboxInput, c *sc) { c.NamespaceOptions.Pid = target }, nil, nil, errdefs.ErrInvalidArgument},
		{"network CONTAINER", func(_ *SandboxInput, c *sc) { c.NamespaceOptions.Network = container }, nil, nil, errdefs.ErrInvalidArgument},
		{"no netns", func(in *SandboxInput, _ *sc) { in.NetNS = "" }, nil, nil, errdefs.ErrFailedPrecondition},
		{"hostname", nil, func(s *specs.Spec) any { return s.Hostname }, "web-0", nil},
		{"hostname of the node stays", func(_ *SandboxInput, c *sc) { c.NamespaceOptions.Network = node }, func(s *specs.Spec) any { return s.Hostname }, "", nil},
		{"oom_score_adj", nil, func(s *specs.Spec) any { return *s.Process.OOMScoreAdj }, -998, nil},
		{"cpu shares", nil, func(s *specs.Spec) any { return *s.Linux.Resources.CPU.Shares }, uint64(2), nil},
		{"no capability", nil, func(s *specs.Spec) any { return *s.Process.Capabilities }, specs.LinuxCapabilities{}, nil},
		{"user", nil, user, specs.User{UID: 65535, GID: 65535, AdditionalGids: []uint32{65535}}, nil},
		{"run_as_user", func(_ *SandboxInput, c *sc) {
			c.RunAsUser, c.RunAsGroup, c.SupplementalGroups = &runtimeapi.Int64Value{Value: 5}, &runtimeapi.Int64Value{Value: 6}, []int64{7, 6}
		}, user, specs.User{UID: 5, GID: 6, AdditionalGids: []uint32{6, 7}}, nil},
		{"run_as_group alone", func(_ *SandboxInput, c *sc) { c.RunAsGroup = &runtimeapi.Int64Value{Value: 6} }, nil, nil, errdefs.ErrInvalidArgument},
		{"user in a small user namespace", func(_ *SandboxInput, c *sc) {
			m := []*runtimeapi.IDMapping{{HostId: 1000, Length: 10}}
			c.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: m, Gids: m}
		}, user, specs.User{AdditionalGids: []uint32{0}}, nil},
		{"seccomp default", nil, func(s *specs.Spec) any { return s.Linux.Seccomp.DefaultAction }, specs.ActErrno, nil},
		{"seccomp Unconfined", func(_ *SandboxInput, c *sc) {
			c.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
		}, func(s *specs.Spec) any { return s.Linux.Seccomp == nil }, true, nil},
		{"sysctl net", sysctl("net.ipv4.ip_forward", "1"), func(s *specs.Spec) any { return s.Linux.Sysctl }, map[string]string{"net.ipv4.ip_forward": "1"}, nil},
		{"sysctl with a dot in a name", sysctl("net.ipv4.conf.eth0/100.forwarding", "1"), func(s *specs.Spec) any { return len(s.Linux.Sysctl) }, 1, nil},
		{"sysctl ipc", sysctl("kernel.shm_rmid_forced", "1"), func(s *specs.Spec) any { return len(s.Linux.Sysctl) }, 1, nil},
		{"sysctl of the node", sysctl("kernel.core_pattern", "|/x"), nil, nil, errdefs.ErrInvalidArgument},
		{"sysctl vm", sysctl("vm.swappiness", "1"), nil, nil, errdefs.ErrInvalidArgument},
		{"sysctl kernel.hostname", sysctl("kernel.hostname", "x"), nil, nil, errdefs.ErrInvalidArgument},
		{"sysctl climbing", sysctl("net.//.kernel.core_pattern", "x"), nil, nil, errdefs.ErrInvalidArgument},
		{"sysctl with slashes", sysctl("net/../kernel/core_pattern", "x"), nil, nil, errdefs.ErrInvalidArgument},
		{"sysctl with plus", sysctl("net.x+kernel.core_pattern", "x"), nil, nil, errdefs.ErrInvalidArgument},
		{"sysctl with a line break", sysctl("net.x", "1\n2"), nil, nil, errdefs.ErrInvalidArgument},
		{"sysctl of a host network", func(in *SandboxInput, c *sc) {
			sysctl("net.x", "1")(in, c)
			c.NamespaceOptions.Network = node
		}, nil, nil, errdefs.ErrInvalidArgument},
		{"sysctl of host ipc", func(in *SandboxInput, c *sc) {
			sysctl("fs.mqueue.msg_max", "1")(in, c)
			c.NamespaceOptions.Ipc = node
		}, nil, nil, errdefs.ErrInvalidArgument},
		{"annotation", nil, func(s *specs.Spec) any { return s.Annotations["io.kubernetes.cri.container-type"] }, "sandbox", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			in, sc := sandboxInput(t)
			if c.set != nil {
				c.set(in, sc)
			}
			s, err := Sandbox(in)
			if c.err != nil {
				if !errors.Is(err, c.err) {
					t.Fatalf("error %v, want %v", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, c.get(s)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseSignal(t *testing.T) {
	for s, want := range map[string]unix.Signal{
		"SIGTERM": 15, "term": 15, "9": 9, "SIGRTMIN": 34, "RTMIN+3": 37, "SIGRTMAX-1": 63, "SIGRTMAX": 64, "64": 64, "SIGCLD": 17, "POLL": 29, "IOT": 6,
	} {
		if got, err := ParseSignal(s); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "0", "-1", "65", "SIG", "SIGNONE", "RTMIN+31", "RTMIN-1", "RTMAX+1", "RTMIN3", "RTMIN+", "SIGSIGTERM x", "99999999999999999999"} {
		if got, err := ParseSignal(s); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
}

func TestCRISignal(t *testing.T) {
	for sig, want := range map[runtimeapi.Signal]unix.Signal{
		runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT: 0, runtimeapi.Signal_SIGNAL_SIGTERM: unix.SIGTERM, runtimeapi.Signal_SIGNAL_SIGKILL: unix.SIGKILL,
		runtimeapi.Signal_SIGNAL_SIGUSR1: unix.SIGUSR1, runtimeapi.Signal_SIGNAL_SIGXFSZ: unix.SIGXFSZ, runtimeapi.Signal_SIGNAL_SIGRTMIN: 34,
		runtimeapi.Signal_SIGNAL_SIGRTMINPLUS15: 49, runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS14: 50, runtimeapi.Signal_SIGNAL_SIGRTMAX: 64,
		runtimeapi.Signal_SIGNAL_SIGHUP: unix.SIGHUP, runtimeapi.Signal_SIGNAL_SIGWINCH: unix.SIGWINCH, runtimeapi.Signal_SIGNAL_SIGSTKFLT: unix.SIGSTKFLT,
	} {
		got, err := CRISignal(sig)
		if err != nil || got != want {
			t.Errorf("%d: %d, %v; want %d", sig, got, err, want)
		}
		if back := SignalCRI(got); got != 0 && back != sig {
			t.Errorf("%d comes back as %d", sig, back)
		}
	}
	for _, bad := range []runtimeapi.Signal{-1, 66, 1000} {
		if _, err := CRISignal(bad); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%d: %v", bad, err)
		}
	}
}

func FuzzUser(f *testing.F) {
	f.Add("user:group")
	f.Add("4294967296")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := (accounts{}).resolve(s)
		if err == nil && (u.uid > 1<<31-1 || u.gid > 1<<31-1) {
			t.Errorf("%q became %+v", s, u)
		}
	})
}
