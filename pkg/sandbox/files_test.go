package sandbox

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

func TestMain(m *testing.M) { testns.Main(m) }

func TestResolvConf(t *testing.T) {
	for name, tt := range map[string]struct {
		dns  *runtimeapi.DNSConfig
		want string
	}{
		"all three": {&runtimeapi.DNSConfig{Servers: []string{"10.0.0.10", "fd00::a"}, Searches: []string{"a.b", "c"}, Options: []string{"ndots:5"}},
			"search a.b c\nnameserver 10.0.0.10\nnameserver fd00::a\noptions ndots:5\n"},
		"servers": {&runtimeapi.DNSConfig{Servers: []string{"1.2.3.4"}}, "nameserver 1.2.3.4\n"},
	} {
		t.Run(name, func(t *testing.T) {
			f := filepath.Join(t.TempDir(), "resolv.conf")
			if err := writeResolvConf(f, tt.dns); err != nil {
				t.Fatal(err)
			}
			if b, _ := os.ReadFile(f); string(b) != tt.want {
				t.Errorf("got %q, want %q", b, tt.want)
			}
		})
	}
	f := filepath.Join(t.TempDir(), "resolv.conf")
	if err := writeResolvConf(f, nil); err != nil {
		t.Fatal(err)
	}
	host, _ := os.ReadFile("/etc/resolv.conf")
	if b, _ := os.ReadFile(f); string(b) != string(host) {
		t.Errorf("without a DNS config the host's file is expected, got %q", b)
	}
}

func TestHostFileTooLarge(t *testing.T) {
	big := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(big, make([]byte, maxHostFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := copyHostFile(big, filepath.Join(t.TempDir(), "copy")); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("got %v", err)
	}
}

func TestFiles(t *testing.T) {
	testns.Root(t)
	s := &Sandboxes{cfg: Config{ShmSize: 1 << 20}}
	dir := filepath.Join(t.TempDir(), "pod")
	logs := filepath.Join(t.TempDir(), "a", "b")
	f, err := s.makeFiles(dir, &runtimeapi.PodSandboxConfig{Hostname: "web-0", LogDirectory: logs})
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(f.Hostname); string(b) != "web-0\n" {
		t.Errorf("hostname file: %q", b)
	}
	if st, err := os.Stat(logs); err != nil || !st.IsDir() {
		t.Errorf("log directory was not made: %v", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(f.Shm, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC || int64(fs.Blocks)*fs.Bsize != 1<<20 {
		t.Errorf("shm is not a tmpfs of 1 MiB: %v, type %x, %d bytes", err, fs.Type, int64(fs.Blocks)*fs.Bsize)
	}
	for range 2 { // idempotent
		if err := removeFiles(f); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the files are still there: %v", err)
	}
}

// TestFilesUserNamespace: the root of the pod's user namespace owns them.
func TestFilesUserNamespace(t *testing.T) {
	testns.Root(t)
	s := &Sandboxes{}
	ids := []*runtimeapi.IDMapping{{HostId: 123456, ContainerId: 0, Length: 65536}}
	c := &runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}},
	}}}
	f, err := s.makeFiles(filepath.Join(t.TempDir(), "pod"), c)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{f.Hostname, f.Hosts, f.ResolvConf, f.Shm} {
		var st unix.Stat_t
		if err := unix.Stat(file, &st); err != nil || st.Uid != 123456 || st.Gid != 123456 {
			t.Errorf("%s belongs to %d:%d, %v", file, st.Uid, st.Gid, err)
		}
	}
	if err := removeFiles(f); err != nil {
		t.Fatal(err)
	}
}

func TestFilesHostIPC(t *testing.T) {
	testns.Root(t)
	s := &Sandboxes{}
	c := &runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{Ipc: runtimeapi.NamespaceMode_NODE, Network: runtimeapi.NamespaceMode_NODE},
	}}}
	f, err := s.makeFiles(filepath.Join(t.TempDir(), "pod"), c)
	if err != nil {
		t.Fatal(err)
	}
	node, _ := os.Hostname()
	if b, _ := os.ReadFile(f.Hostname); f.Shm != "" || string(b) != node+"\n" {
		t.Errorf("shm %q, hostname %q; want none and the node's %q", f.Shm, b, node)
	}
	if err := removeFiles(f); err != nil {
		t.Fatal(err)
	}
}
