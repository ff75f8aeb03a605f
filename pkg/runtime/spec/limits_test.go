package spec

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

func ptr[T any](v T) *T { return &v }

func TestResourceFields(t *testing.T) {
	with := func(r *runtimeapi.LinuxContainerResources, host ...func(*Host)) func(*Input, *secctx) {
		return func(in *Input, _ *secctx) {
			in.Container.Linux.Resources = r
			for _, h := range host {
				h(in.Host)
			}
		}
	}
	get := func(s *specs.Spec) any { r := *s.Linux.Resources; r.Devices = nil; return r }
	cpu := func(c specs.LinuxCPU) specs.LinuxResources { return specs.LinuxResources{CPU: &c} }
	oom := func(s *specs.Spec) any { return *s.Process.OOMScoreAdj }
	noSwap := func(h *Host) { h.Swap = false }
	run(t, []row{
		{"zero is unset", with(&runtimeapi.LinuxContainerResources{}), get, specs.LinuxResources{}, nil},
		{"none", with(nil), get, specs.LinuxResources{}, nil},
		{"cpu_shares", with(&runtimeapi.LinuxContainerResources{CpuShares: 512}), get, cpu(specs.LinuxCPU{Shares: ptr(uint64(512))}), nil},
		{"cpu_quota -1", with(&runtimeapi.LinuxContainerResources{CpuQuota: -1, CpuPeriod: 100000}), get, cpu(specs.LinuxCPU{Quota: ptr(int64(-1)), Period: ptr(uint64(100000))}), nil},
		{"cpuset", with(&runtimeapi.LinuxContainerResources{CpusetCpus: "0-1", CpusetMems: "0"}), get, cpu(specs.LinuxCPU{Cpus: "0-1", Mems: "0"}), nil},
		{"cpu_shares negative", with(&runtimeapi.LinuxContainerResources{CpuShares: -1}), nil, nil, errdefs.ErrInvalidArgument},
		{"memory_limit_in_bytes allows no swap", with(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 9}), get,
			specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(9)), Swap: ptr(int64(9))}}, nil},
		{"memory_limit_in_bytes without swap accounting", with(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 9}, noSwap), get,
			specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(9))}}, nil},
		{"memory_swap_limit_in_bytes", with(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 9, MemorySwapLimitInBytes: 20}), get,
			specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(9)), Swap: ptr(int64(20))}}, nil},
		{"hugepage_limits", with(&runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4}, {PageSize: "1GB"}}}), get,
			specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4}}}, nil},
		{"hugepage_limits without controller", with(&runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "1GB", Limit: 1}}}), nil, nil, errdefs.ErrNotImplemented},
		{"unified", with(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.high": "max"}}), get,
			specs.LinuxResources{Unified: map[string]string{"memory.high": "max"}}, nil},
		{"unified on v1", with(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.high": "max"}}, func(h *Host) { h.CgroupVersion = 1 }), nil, nil, errdefs.ErrNotImplemented},
		{"oom_score_adj", with(&runtimeapi.LinuxContainerResources{OomScoreAdj: -500}), oom, -500, nil},
		{"oom_score_adj clamped", with(&runtimeapi.LinuxContainerResources{OomScoreAdj: -500}, func(h *Host) { h.OOMScoreAdjMin = 0 }), oom, 0, nil},
		{"oom_score_adj out of range", with(&runtimeapi.LinuxContainerResources{OomScoreAdj: 1001}), nil, nil, errdefs.ErrInvalidArgument},
		{"rlimits", nil, func(s *specs.Spec) any { return s.Process.Rlimits }, []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 524288}}, nil},
		{"rlimits of a small host", with(nil, func(h *Host) { h.NoFileMax = 500 }), func(s *specs.Spec) any { return s.Process.Rlimits },
			[]specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 500, Hard: 500}}, nil},
		{"cgroup path", nil, func(s *specs.Spec) any { return s.Linux.CgroupsPath }, "/pod/c1", nil},
		{"annotations", nil, func(s *specs.Spec) any { return s.Annotations }, map[string]string{
			"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": "ctr", "io.kubernetes.cri.image-name": "img:1",
			"io.kubernetes.cri.sandbox-id": "s1", "io.kubernetes.cri.sandbox-name": "pod", "io.kubernetes.cri.sandbox-namespace": "ns",
			"io.kubernetes.cri.sandbox-uid": "u1"}, nil},
	})
}

func TestDeviceFields(t *testing.T) {
	testns.Root(t)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, minor := range map[string]uint32{"null": 3, "sub/zero": 5, "console": 1} {
		if err := unix.Mknod(filepath.Join(dir, name), unix.S_IFCHR|0o640, int(unix.Mkdev(1, minor))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(dir, "null"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	with := func(host, container, perm string) func(*Input, *secctx) {
		return func(in *Input, _ *secctx) {
			in.Container.Devices = []*runtimeapi.Device{{HostPath: host, ContainerPath: container, Permissions: perm}}
		}
	}
	paths := func(s *specs.Spec) any {
		var p []string
		for _, d := range s.Linux.Devices {
			p = append(p, d.Path)
		}
		slices.Sort(p)
		return p
	}
	last := func(s *specs.Spec) any { return s.Linux.Resources.Devices[len(s.Linux.Resources.Devices)-1] }
	run(t, []row{
		{"default rules", nil, func(s *specs.Spec) any { return s.Linux.Resources.Devices }, defaultDeviceRules(), nil},
		{"device", with(dir+"/null", "/dev/n", "rw"), paths, []string{"/dev/n"}, nil},
		{"rule", with(dir+"/null", "/dev/n", "rw"), last, rule("c", 1, 3, "rw"), nil},
		{"symlink", with(dir+"/link", "/dev/n", "r"), last, rule("c", 1, 3, "r"), nil},
		{"permissions default", with(dir+"/null", "/dev/n", ""), last, rule("c", 1, 3, "rwm"), nil},
		{"container_path default", with(dir+"/null", "", "r"), paths, []string{dir + "/null"}, nil},
		{"directory", with(dir, "/dev/d", "rw"), paths, []string{"/dev/d/null", "/dev/d/sub/zero"}, nil},
		{"permissions", with(dir+"/null", "/dev/n", "rx"), nil, nil, errdefs.ErrInvalidArgument},
		{"missing", with(dir+"/none", "/dev/n", "r"), nil, nil, errdefs.ErrNotFound},
		{"no device", with("/etc/passwd", "/dev/n", "r"), nil, nil, errdefs.ErrInvalidArgument},
		{"relative", with("null", "/dev/n", "r"), nil, nil, errdefs.ErrInvalidArgument},
		{"of the host's /dev when privileged", func(in *Input, c *secctx) { privileged(in, c); in.HostDevices = nil },
			func(s *specs.Spec) any { return slices.Contains(paths(s).([]string), "/dev/null") }, true, nil},
	})
}

func TestCDI(t *testing.T) {
	var got []string
	with := func(field string, annotation string) func(*Input, *secctx) {
		return func(in *Input, _ *secctx) {
			got = nil
			in.Container.CDIDevices = []*runtimeapi.CDIDevice{{Name: field}}
			if annotation != "" {
				in.Container.Annotations = map[string]string{"cdi.k8s.io/plugin_x": annotation}
			}
			in.CDI = func(_ *specs.Spec, names []string) error { got = names; return nil }
		}
	}
	names := func(*specs.Spec) any { return got }
	run(t, []row{
		{"field", with("v.com/c=d", ""), names, []string{"v.com/c=d"}, nil},
		{"annotation, once", with("v.com/c=d", "v.com/c=e,v.com/c=d"), names, []string{"v.com/c=d", "v.com/c=e"}, nil},
		{"unqualified", with("d", ""), nil, nil, errdefs.ErrInvalidArgument},
		{"bad annotation", with("v.com/c=d", "nonsense"), nil, nil, errdefs.ErrInvalidArgument},
		{"unresolvable", func(in *Input, c *secctx) { with("none.example/c=d", "")(in, c); in.CDI = nil }, nil, nil, errdefs.ErrNotFound},
	})
}

func TestProfiles(t *testing.T) {
	const unconfined, def, local = runtimeapi.SecurityProfile_Unconfined, runtimeapi.SecurityProfile_RuntimeDefault, runtimeapi.SecurityProfile_Localhost
	file := filepath.Join(t.TempDir(), "p.json")
	if err := os.WriteFile(file, []byte(`{"defaultAction":"SCMP_ACT_LOG"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	seccomp := func(kind runtimeapi.SecurityProfile_ProfileType, ref string) func(*Input, *secctx) {
		return func(_ *Input, c *secctx) {
			c.Seccomp = &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
		}
	}
	//lint:ignore SA1019 the CRI keeps the old field as a fallback
	old := func(p string) func(*Input, *secctx) { return func(_ *Input, c *secctx) { c.SeccompProfilePath = p } }
	action := func(s *specs.Spec) any {
		if s.Linux.Seccomp == nil {
			return "none"
		}
		return string(s.Linux.Seccomp.DefaultAction)
	}
	armor := func(kind runtimeapi.SecurityProfile_ProfileType, ref, def string, on bool) func(*Input, *secctx) {
		return func(in *Input, c *secctx) {
			in.Host.AppArmor, in.Host.AppArmorDefault = on, def
			c.Apparmor = &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
		}
	}
	label := func(s *specs.Spec) any { return s.Process.ApparmorProfile }
	run(t, []row{
		{"seccomp nil", nil, action, "none", nil},
		{"seccomp Unconfined", seccomp(unconfined, ""), action, "none", nil},
		{"seccomp RuntimeDefault", seccomp(def, ""), action, "SCMP_ACT_ERRNO", nil},
		{"seccomp Localhost", seccomp(local, file), action, "SCMP_ACT_LOG", nil},
		{"seccomp Localhost missing", seccomp(local, file+"x"), nil, nil, errdefs.ErrNotFound},
		{"seccomp Localhost relative", seccomp(local, "p.json"), nil, nil, errdefs.ErrInvalidArgument},
		{"seccomp ref without Localhost", seccomp(def, "x"), nil, nil, errdefs.ErrInvalidArgument},
		{"seccomp_profile_path", old("runtime/default"), action, "SCMP_ACT_ERRNO", nil},
		{"seccomp_profile_path localhost", old("localhost/" + file), action, "SCMP_ACT_LOG", nil},
		{"seccomp_profile_path bad", old("x"), nil, nil, errdefs.ErrInvalidArgument},
		{"apparmor nil", nil, label, "", nil},
		{"apparmor RuntimeDefault without AppArmor", armor(def, "", "", false), nil, nil, errdefs.ErrNotImplemented},
		{"apparmor Unconfined without AppArmor", armor(unconfined, "", "", false), label, "", nil},
		{"apparmor RuntimeDefault", armor(def, "", "cri-default", true), label, "cri-default", nil},
		{"apparmor RuntimeDefault, none loaded", armor(def, "", "", true), nil, nil, errdefs.ErrNotFound},
		{"apparmor Localhost without a name", armor(local, "", "", true), nil, nil, errdefs.ErrInvalidArgument},
		{"no_new_privs", func(_ *Input, c *secctx) { c.NoNewPrivs = true }, func(s *specs.Spec) any { return s.Process.NoNewPrivileges }, true, nil},
	})
}
