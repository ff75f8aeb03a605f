package spec

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

func TestMain(m *testing.M) { testns.Main(m) }

// input is a pod with namespaces of its own and a container that asks for nothing. The image has accounts.
func input(t *testing.T) *Input {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{
		"real/passwd": "root:x:0:0:root:/root:/bin/sh\nbroken:x:many:0::/:\nuser:x:1000:1001::/home/user:\nhuge:x:4294967296:0::/:\n" +
			"1005:x:7:7::/:\n# comment:x:0:0::/:\n\nshort:x\n",
		"etc/group": "root:x:0:\nstaff:x:50:user,root\nother:x:51:someone, user\nodd:x:what:user\nusers:x:1001:\n",
	}
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Absolute, and so inside the image's root.
	if err := os.Symlink("/real/passwd", filepath.Join(dir, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return &Input{
		ID: "c1", SandboxID: "s1", ImageName: "img:1", Files: FilesOf(root), CgroupPath: "/pod/c1",
		Host: &Host{Name: "node", CgroupVersion: 2, Bounding: append(slices.Clone(defaultCapabilities), "CAP_NET_ADMIN"), OOMScoreAdjMin: -1000,
			RecursiveReadOnly: true, IDMappedMounts: true, UserNamespaces: true, Swap: true, NoFileMax: 1 << 20, Hugetlb: []string{"2MB"}},
		Pod: &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod", Namespace: "ns", Uid: "u1"}, Hostname: "web-0",
			Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{}}},
		},
		Container: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "ctr"}, Linux: &runtimeapi.LinuxContainerConfig{
				Resources:       &runtimeapi.LinuxContainerResources{},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{}}},
		},
		Image:      &ocispec.ImageConfig{Cmd: []string{"/app"}},
		Namespaces: Namespaces{Net: "/n/net", IPC: "/n/ipc", UTS: "/n/uts", PID: "/n/pid"},
	}
}

// row is what a field of the message does to the spec.
type row struct {
	name string
	set  func(in *Input, sc *runtimeapi.LinuxContainerSecurityContext)
	get  func(s *specs.Spec) any
	want any
	err  error
}

func run(t *testing.T, rows []row) {
	t.Helper()
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			in := input(t)
			if r.set != nil {
				r.set(in, in.Container.Linux.SecurityContext)
			}
			s, err := Container(in)
			if r.err != nil {
				if !errors.Is(err, r.err) {
					t.Fatalf("error %v, want %v", err, r.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(r.want, r.get(s)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func pargs(s *specs.Spec) any { return s.Process.Args }
func penv(s *specs.Spec) any  { return s.Process.Env }
func pcwd(s *specs.Spec) any  { return s.Process.Cwd }
func puser(s *specs.Spec) any { return s.Process.User }

func TestCommand(t *testing.T) {
	type sc = runtimeapi.LinuxContainerSecurityContext
	image := func(entry, cmd []string) func(*Input, *sc) {
		return func(in *Input, _ *sc) { in.Image.Entrypoint, in.Image.Cmd = entry, cmd }
	}
	with := func(command, args []string) func(*Input, *sc) {
		return func(in *Input, _ *sc) {
			in.Image.Entrypoint, in.Image.Cmd = []string{"entry"}, []string{"cmd"}
			in.Container.Command, in.Container.Args = command, args
		}
	}
	run(t, []row{
		{"image cmd", nil, pargs, []string{"/app"}, nil},
		{"image entrypoint and cmd", image([]string{"e"}, []string{"c"}), pargs, []string{"e", "c"}, nil},
		{"image with an unset entrypoint", image([]string{""}, []string{"c"}), pargs, []string{"c"}, nil},
		{"nothing to run", image(nil, nil), nil, nil, errdefs.ErrInvalidArgument},
		{"no image config", func(in *Input, _ *sc) { in.Image = nil }, nil, nil, errdefs.ErrInvalidArgument},
		{"command replaces both", with([]string{"new"}, nil), pargs, []string{"new"}, nil},
		{"args replace cmd", with(nil, []string{"a"}), pargs, []string{"entry", "a"}, nil},
		{"command and args", with([]string{"new"}, []string{"a"}), pargs, []string{"new", "a"}, nil},
		{"NUL in args", with(nil, []string{"a\x00b"}), nil, nil, errdefs.ErrInvalidArgument},
		{"working_dir", func(in *Input, _ *sc) { in.Image.WorkingDir, in.Container.WorkingDir = "/a", "/b" }, pcwd, "/b", nil},
		{"working_dir of the image", func(in *Input, _ *sc) { in.Image.WorkingDir = "a/../c" }, pcwd, "/c", nil},
		{"working_dir default", nil, pcwd, "/", nil},
		{"tty", func(in *Input, _ *sc) { in.Container.Tty = true },
			func(s *specs.Spec) any { return s.Process.Terminal && slices.Contains(s.Process.Env, "TERM=xterm") }, true, nil},
	})
}

func TestEnvs(t *testing.T) {
	type sc = runtimeapi.LinuxContainerSecurityContext
	envs := func(kv ...string) func(*Input, *sc) {
		return func(in *Input, _ *sc) {
			in.Image.Env = []string{"A=image", "B=image", "PATH=/bin", "junk", "=x"}
			for i := 0; i < len(kv); i += 2 {
				in.Container.Envs = append(in.Container.Envs, &runtimeapi.KeyValue{Key: kv[i], Value: []byte(kv[i+1])})
			}
		}
	}
	run(t, []row{
		{"defaults", nil, penv, []string{defaultPath, "HOSTNAME=web-0", "HOME=/root"}, nil},
		{"node's hostname", func(in *Input, _ *sc) { in.Pod.Hostname = "" }, penv, []string{defaultPath, "HOSTNAME=node", "HOME=/root"}, nil},
		{"image first, container over it", envs("B", "cri", "C", "x=y", "C", "z", "HOME", "/h"), penv,
			[]string{"PATH=/bin", "HOSTNAME=web-0", "A=image", "B=cri", "C=z", "HOME=/h"}, nil},
		{"bytes", envs("N", "\xff\xfe"), func(s *specs.Spec) any { return slices.Contains(s.Process.Env, "N=\xff\xfe") }, true, nil},
		{"empty name", envs("", "x"), nil, nil, errdefs.ErrInvalidArgument},
		{"name with =", envs("a=b", "x"), nil, nil, errdefs.ErrInvalidArgument},
		{"NUL in value", envs("a", "\x00"), nil, nil, errdefs.ErrInvalidArgument},
	})
}

func TestUser(t *testing.T) {
	type sc = runtimeapi.LinuxContainerSecurityContext
	id := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	user := func(u, g uint32, more ...uint32) specs.User {
		return specs.User{UID: u, GID: g, AdditionalGids: append([]uint32{g}, more...)}
	}
	img := func(u string) func(*Input, *sc) { return func(in *Input, _ *sc) { in.Image.User = u } }
	run(t, []row{
		{"default is root", nil, puser, user(0, 0, 50), nil},
		{"image user by name", img("user"), puser, user(1000, 1001, 50, 51), nil},
		{"image user by number", img("1000"), puser, user(1000, 1001, 50, 51), nil},
		{"image uid:gid", img("1000:1000"), puser, user(1000, 1000, 50, 51), nil},
		{"image user:group", img("user:staff"), puser, user(1000, 50, 51), nil},
		{"image uid not in passwd", img("4242"), puser, user(4242, 0), nil},
		{"digits are never a name", img("1005"), puser, user(1005, 0), nil},
		{"image user with a colon only", img("user:"), puser, user(1000, 1001, 50, 51), nil},
		{"unknown user", img("nobody"), nil, nil, errdefs.ErrNotFound},
		{"unknown group", img("user:nogroup"), nil, nil, errdefs.ErrNotFound},
		{"uid overflow", img("4294967296"), nil, nil, errdefs.ErrInvalidArgument},
		{"uid overflow of 64 bits", img("18446744073709551616"), nil, nil, errdefs.ErrInvalidArgument},
		{"negative uid", img("-1"), nil, nil, errdefs.ErrInvalidArgument},
		{"gid overflow", img("0:4294967296"), nil, nil, errdefs.ErrInvalidArgument},
		{"account with a broken uid", img("broken"), nil, nil, errdefs.ErrInvalidArgument},
		{"account with a huge uid", img("huge"), nil, nil, errdefs.ErrInvalidArgument},
		{"run_as_user", func(_ *Input, c *sc) { c.RunAsUser = id(1000) }, puser, user(1000, 1001, 50, 51), nil},
		{"run_as_user over image", func(in *Input, c *sc) { in.Image.User, c.RunAsUser = "user", id(5) }, puser, user(5, 0), nil},
		{"run_as_username", func(_ *Input, c *sc) { c.RunAsUsername = "user" }, puser, user(1000, 1001, 50, 51), nil},
		{"run_as_username and run_as_user", func(_ *Input, c *sc) { c.RunAsUsername, c.RunAsUser = "user", id(1) }, nil, nil, errdefs.ErrInvalidArgument},
		{"run_as_username with a colon", func(_ *Input, c *sc) { c.RunAsUsername = "user:root" }, nil, nil, errdefs.ErrInvalidArgument},
		{"run_as_group", func(_ *Input, c *sc) { c.RunAsUser, c.RunAsGroup = id(1000), id(9) }, puser, user(1000, 9, 50, 51), nil},
		{"run_as_group without run_as_user", func(_ *Input, c *sc) { c.RunAsGroup = id(9) }, nil, nil, errdefs.ErrInvalidArgument},
		{"run_as_user out of range", func(_ *Input, c *sc) { c.RunAsUser = id(1 << 32) }, nil, nil, errdefs.ErrInvalidArgument},
		{"supplemental_groups", func(_ *Input, c *sc) { c.RunAsUser, c.SupplementalGroups = id(1000), []int64{9, 50, 1001, 9} }, puser, user(1000, 1001, 9, 50, 51), nil},
		{"supplemental_groups_policy Strict", func(_ *Input, c *sc) {
			c.RunAsUser, c.SupplementalGroups = id(1000), []int64{9}
			c.SupplementalGroupsPolicy = runtimeapi.SupplementalGroupsPolicy_Strict
		}, puser, user(1000, 1001, 9), nil},
		{"supplemental_groups_policy unknown", func(_ *Input, c *sc) { c.SupplementalGroupsPolicy = 7 }, nil, nil, errdefs.ErrNotImplemented},
		{"supplemental group out of range", func(_ *Input, c *sc) { c.SupplementalGroups = []int64{-1} }, nil, nil, errdefs.ErrInvalidArgument},
		{"home of the user", func(_ *Input, c *sc) { c.RunAsUser = id(1000) }, func(s *specs.Spec) any { return slices.Contains(s.Process.Env, "HOME=/home/user") }, true, nil},
		{"no root file system", func(in *Input, c *sc) { in.Files, c.RunAsUser = nil, id(3) }, puser, user(3, 0), nil},
	})
}

func TestAccountsAreBounded(t *testing.T) {
	in, dir := input(t), t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "real"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", filepath.Join(dir, "etc")); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	in.Files = FilesOf(root)
	if err := os.WriteFile(filepath.Join(dir, "real/passwd"), []byte(strings.Repeat("a", maxAccounts+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Container(in); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a huge passwd: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "real/passwd")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "real/passwd"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Container(in); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a directory: %v", err)
	}
}

func TestCapabilities(t *testing.T) {
	type sc = runtimeapi.LinuxContainerSecurityContext
	caps := func(add, drop, ambient []string) func(*Input, *sc) {
		return func(_ *Input, c *sc) {
			c.Capabilities = &runtimeapi.Capability{AddCapabilities: add, DropCapabilities: drop, AddAmbientCapabilities: ambient}
		}
	}
	sets := func(set, ambient []string) *specs.LinuxCapabilities {
		return &specs.LinuxCapabilities{Bounding: set, Permitted: set, Effective: set, Inheritable: ambient, Ambient: ambient}
	}
	get := func(s *specs.Spec) any { return s.Process.Capabilities }
	all := sorted(append(slices.Clone(defaultCapabilities), "CAP_NET_ADMIN"))
	no := []string(nil)
	run(t, []row{
		{"default", nil, get, sets(defaultCapabilities, no), nil},
		{"add", caps([]string{"net_admin"}, nil, nil), get, sets(all, no), nil},
		{"add with CAP_", caps([]string{"CAP_NET_ADMIN", "NET_ADMIN"}, nil, nil), get, sets(all, no), nil},
		{"add ALL is what the host has", caps([]string{"ALL"}, nil, nil), get, sets(all, no), nil},
		{"drop", caps(nil, []string{"CHOWN"}, nil), get, sets(slices.Delete(slices.Clone(defaultCapabilities), 1, 2), no), nil},
		{"drop all", caps(nil, []string{"all"}, nil), get, sets(no, no), nil},
		{"drop ALL, add one", caps([]string{"CHOWN"}, []string{"ALL"}, nil), get, sets([]string{"CAP_CHOWN"}, no), nil},
		{"add ALL, drop one", caps([]string{"ALL"}, []string{"NET_ADMIN"}, nil), get, sets(defaultCapabilities, no), nil},
		{"ambient is in all five", caps(nil, []string{"ALL"}, []string{"KILL"}), get, sets([]string{"CAP_KILL"}, []string{"CAP_KILL"}), nil},
		{"unknown", caps([]string{"FLY"}, nil, nil), nil, nil, errdefs.ErrInvalidArgument},
		{"one that the host lacks", caps([]string{"SYS_ADMIN"}, nil, nil), nil, nil, errdefs.ErrPermissionDenied},
		{"dropping one that the host lacks", caps(nil, []string{"SYS_ADMIN"}, nil), get, sets(defaultCapabilities, no), nil},
	})
}

func TestContainerRefusesNothing(t *testing.T) {
	if _, err := Container(&Input{}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("empty input: %v", err)
	}
}

func TestProbeHost(t *testing.T) {
	h, err := ProbeHost()
	if err != nil {
		t.Fatal(err)
	}
	if h.Name == "" || h.CgroupVersion < 1 || h.CgroupVersion > 2 || h.NoFileMax == 0 {
		t.Errorf("%+v", h)
	}
	for _, c := range h.Bounding {
		if !known[c] {
			t.Errorf("unknown capability %q", c)
		}
	}
}
