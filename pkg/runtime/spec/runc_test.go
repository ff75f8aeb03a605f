package spec

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

// TestRunsUnderAnOCIRuntime gives whole specs to runc: what it refuses or ignores, we have wrong.
func TestRunsUnderAnOCIRuntime(t *testing.T) {
	testns.Root(t)
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Skip("no runc here")
	}
	const busybox = "/bin/busybox"
	if _, err := os.Stat(busybox); err != nil {
		t.Skip("no static busybox here")
	}
	host, err := ProbeHost()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + testns.CgroupParent())
		for _, d := range dirs {
			_ = unix.Rmdir(d)
		}
	})
	const script = "id -u; id -G; cat /proc/self/oom_score_adj; grep -c ' /sys ' /proc/mounts; echo $HOME; ulimit -n; " +
		"grep CapEff /proc/self/status; grep Seccomp: /proc/self/status; cat /proc/1/comm; echo x > /data/out && cat /data/out; (echo x > /ro) 2>/dev/null || echo denied"
	for _, c := range []struct {
		name       string
		privileged bool
		want       string
	}{
		{"default", false, "1000\n1001 9 50 51\n100\n1\n/home/user\n1024\nCapEff:\t0000000000000000\nSeccomp:\t2\nsh\nx\ndenied\n"},
		{"privileged", true, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := input(t)
			in.Host, in.PrivilegedPod = host, true
			const node = runtimeapi.NamespaceMode_NODE
			o := podOptions(in)
			o.Network, o.Ipc = node, node
			sc := in.Container.Linux.SecurityContext
			sc.NamespaceOptions = &runtimeapi.NamespaceOption{Network: node, Ipc: node, Pid: runtimeapi.NamespaceMode_CONTAINER}
			sc.Privileged = c.privileged
			sc.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
			sc.MaskedPaths, sc.ReadonlyPaths = []string{"/proc/kcore", "/proc/keys"}, []string{"/proc/sys", "/proc/bus"}
			in.Container.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 100}
			in.Container.Command = []string{"sh", "-c", script}
			data := t.TempDir()
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: data}}
			if !c.privileged {
				sc.RunAsUser, sc.SupplementalGroups = &runtimeapi.Int64Value{Value: 1000}, []int64{9}
				if err := os.Chmod(data, 0o777); err != nil {
					t.Fatal(err)
				}
			}
			in.CgroupPath = testns.CgroupParent() + "/" + strings.ReplaceAll(t.Name(), "/", "-")
			s, err := Container(in)
			if err != nil {
				t.Fatal(err)
			}
			out := runBundle(t, runc, busybox, s)
			if c.want != "" && out != c.want {
				t.Errorf("got\n%s\nwant\n%s", out, c.want)
			}
			if c.privileged && !strings.Contains(out, "Seccomp:\t0") {
				t.Errorf("privileged:\n%s", out)
			}
		})
	}
	t.Run("sandbox", func(t *testing.T) {
		in, sc := sandboxInput(t)
		in.Host = host
		sc.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		in.CgroupPath = testns.CgroupParent() + "/sandbox"
		s, err := Sandbox(in)
		if err != nil {
			t.Fatal(err)
		}
		if out := runBundle(t, runc, busybox, s); !strings.Contains(out, "pause ran") {
			t.Errorf("%s", out)
		}
	})
}

// runBundle runs s in a root with busybox in it; /pause is a script there.
func runBundle(t *testing.T, runc, busybox string, s *specs.Spec) string {
	t.Helper()
	bundle := t.TempDir()
	root := filepath.Join(bundle, "rootfs")
	if err := os.MkdirAll(filepath.Join(root, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{bundle, filepath.Dir(bundle)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, applet := range []string{"sh", "id", "cat", "grep"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "pause"), []byte("#!/bin/sh\necho pause ran\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), runc, "--root", filepath.Join(bundle, "state"), "run", "--bundle", bundle, "spec-test").CombinedOutput()
	if err != nil {
		t.Fatalf("runc run: %v\n%s", err, out)
	}
	return string(out)
}
