package inspect

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-9a14075a/cri-server/pkg/operation"
)

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func ptr[T any](v T) *T { return &v }

func TestNamespacesOfOurselves(t *testing.T) {
	got, err := Namespaces(os.Getpid(), 0, map[string]string{"net": "/run/netns/x"})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) < 6 {
		t.Errorf("%+v", got)
	}
	for _, n := range got {
		if n.Shared != "host" || n.Inode == 0 || n.Path != "" {
			t.Errorf("%+v", n)
		}
	}
	if _, err := Namespaces(1<<30, 0, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a process that is not there: %v", err)
	}
}

func TestCompare(t *testing.T) {
	got := compare(
		map[string]uint64{"net": 2, "ipc": 2, "mnt": 9, "user": 1},
		map[string]uint64{"net": 2, "ipc": 2, "mnt": 8, "user": 1},
		map[string]uint64{"net": 1, "ipc": 1, "mnt": 1, "user": 1},
		map[string]string{"net": "/run/netns/cri-a", "user": "/never"})
	if diff := cmp.Diff([]Namespace{
		{Type: "ipc", Inode: 2, Shared: "pod"},
		{Type: "mnt", Inode: 9, Shared: "own"},
		{Type: "net", Inode: 2, Shared: "pod", Path: "/run/netns/cri-a"},
		{Type: "user", Inode: 1, Shared: "host"},
	}, got); diff != "" {
		t.Error(diff)
	}
}

func TestNamespaceLinks(t *testing.T) {
	dir := t.TempDir()
	ns := filepath.Join(dir, "5", "ns")
	if err := os.MkdirAll(ns, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, l := range []string{"net:[42]", "uts:[43]"} {
		if err := os.Symlink(l, filepath.Join(ns, l[:3])); err != nil {
			t.Fatal(err)
		}
	}
	got, err := namespaceInodes(dir, "5")
	if diff := cmp.Diff(map[string]uint64{"net": 42, "uts": 43}, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if err := os.Symlink("mnt:x", filepath.Join(ns, "mnt")); err != nil {
		t.Fatal(err)
	}
	if _, err := namespaceInodes(dir, "5"); err == nil {
		t.Error("an odd link was read")
	}
}

func TestProcessTree(t *testing.T) {
	proc := t.TempDir()
	for pid, p := range map[string]struct{ parent, inside, cmd string }{
		"100": {"1", "100\t1", "/pause\x00"},
		"110": {"1", "110\t7\t1", "sh\x00-c\x00sleep 1\x1b[31m\x00"},
		"120": {"110", "120\t8\t2", ""},
		"130": {"120", "130\t9\t3", strings.Repeat("x", 1000)},
	} {
		put(t, filepath.Join(proc, pid, "status"), "Name:\tkid\x07\nState:\tS (sleeping)\nPPid:\t"+p.parent+
			"\nUid:\t1000\t0\t0\t0\nVmRSS:\t     20 kB\nThreads:\t2\nNSpid:\t"+p.inside+"\nBroken\n")
		put(t, filepath.Join(proc, pid, "cmdline"), p.cmd)
	}
	base := Process{State: "S", UID: 1000, Threads: 2, RSS: 20480}
	want := func(pid, inside int, cmd string, children ...Process) Process {
		p := base
		p.Pid, p.PidInside, p.Command, p.Children = pid, inside, cmd, children
		return p
	}
	got := tree(proc, []int{130, 110, 120, 100, 110, 999})
	if diff := cmp.Diff([]Process{
		want(100, 1, "/pause"),
		want(110, 1, "sh -c sleep 1?[31m", want(120, 2, "[kid?]", want(130, 3, strings.Repeat("x", 300)+"…"))),
	}, got); diff != "" {
		t.Error(diff)
	}
}

func TestProcessesReadsCgroups(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "cgroup.procs"), "0\n")
	put(t, filepath.Join(dir, "exec", "cgroup.procs"), itoa(os.Getpid())+"\nx\n")
	got := Processes(dir, dir, filepath.Join(dir, "none"))
	if len(got) != 1 || got[0].Pid != os.Getpid() || got[0].Command == "" {
		t.Errorf("%+v", got)
	}
}

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }

func TestLimits(t *testing.T) {
	dir := t.TempDir()
	for f, text := range map[string]string{
		"v2/cpu.max": "10000 100000\n", "v2/cpu.weight": "79\n", "v2/memory.max": "1048576\n", "v2/memory.current": "4096\n",
		"v2/pids.max": "max\n", "v2/pids.current": "3\n", "v2/cpu.stat": "usage_usec 1500\nuser_usec 7\n", "v2/cpuset.cpus": "0-1\n",
		"free/cpu.max": "max 100000\n", "free/memory.max": "max\n",
		"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n", "cpu/cpu.shares": "102\n", "cpu/cpuacct.usage": "1500000\n",
		"mem/memory.limit_in_bytes": "9223372036854771712\n", "mem/memory.usage_in_bytes": "4096\n",
		"pids/pids.max": "7\n", "pids/pids.current": "1\n",
		"half/cpu.cfs_quota_us": "5000\n", "half/cpu.cfs_period_us": "100000\n",
	} {
		put(t, filepath.Join(dir, f), text)
	}
	at := func(s string) string { return filepath.Join(dir, s) }
	for name, tc := range map[string]struct {
		got, want *Cgroup
	}{
		"v2": {Limits("/a", at("v2"), nil), &Cgroup{Path: "/a", Version: 2, Dirs: []string{at("v2")}, CPUQuota: ptr(int64(10000)),
			CPUPeriod: ptr(int64(100000)), CPUWeight: ptr(int64(79)), Cpuset: "0-1", MemoryMax: ptr(int64(1 << 20)),
			MemoryUsage: ptr(int64(4096)), PidsCurrent: ptr(int64(3)), CPUUsage: ptr(uint64(1500000))}},
		"v2 unlimited": {Limits("/a", at("free"), nil), &Cgroup{Path: "/a", Version: 2, Dirs: []string{at("free")}}},
		"v1": {Limits("/a", at("v2"), map[string]string{"cpu,cpuacct": at("cpu"), "memory": at("mem"), "pids": at("pids"), "name=systemd": at("cpu")}),
			&Cgroup{Path: "/a", Version: 1, Dirs: []string{at("cpu"), at("mem"), at("pids"), at("v2")}, CPUShares: ptr(int64(102)),
				MemoryUsage: ptr(int64(4096)), PidsMax: ptr(int64(7)), PidsCurrent: ptr(int64(1)), CPUUsage: ptr(uint64(1500000))}},
		"v1 quota": {Limits("/a", "", map[string]string{"cpu": at("half")}),
			&Cgroup{Path: "/a", Version: 1, Dirs: []string{at("half")}, CPUQuota: ptr(int64(5000)), CPUPeriod: ptr(int64(100000))}},
		"gone": {Limits("/a", at("gone"), nil), &Cgroup{Path: "/a", Version: 2, Dirs: []string{at("gone")}}},
		"none": {Limits("/a", "", nil), &Cgroup{Path: "/a", Version: 2}},
	} {
		if diff := cmp.Diff(tc.want, tc.got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestBridge(t *testing.T) {
	for _, name := range []string{"", "../lo", "lo", "nosuch0"} {
		if b := Bridge(name); b != "" {
			t.Errorf("%q is a port of %q", name, b)
		}
	}
}

const text = `Pod default/web
  id           aaa
  uid          u-1
  state        ready
  network      cri 10.85.0.2 fd00::2
    netns      /run/netns/cri-aaa
    link       eth0 ↔ veth1 ↔ cri0
  namespaces
    net     own   7 /run/netns/cri-aaa
    pid     host  8
  cgroup v2  /pods/aaa
    dir        /sys/fs/cgroup/pods/aaa
    cpu        10000 µs per 100000 µs, weight 79, used 2ms
    memory     4.0 KiB of 1.0 MiB
    pids       3 of no limit
  files
    hosts        /run/x/hosts
    resolv.conf  /run/x/resolv.conf
  processes      pid  inside    uid       rss
           S     100       1   1000      20 B  /pause
           R     101       2      0       0 B    child
  run default/web/u-1/0 took 3ms
    network                     2ms at 1ms
      address                  10µs at 2ms

Container app
  id           bbb
  pod          aaa
  image        nginx sha256:1
  engine       native
  state        exited, exit code 137, OOMKilled
  log          /var/log/pods/x/0.log
  rootfs
    lower 0    /l/2
    lower 1    /l/1
    upper      /s/bbb/fs
  mounts
    /data ← /src bind ro,rprivate
    /tmp tmpfs
  start bbb runs for 1ms
    failed: boom
`

func TestText(t *testing.T) {
	pod := &Pod{
		ID: "aaa", Name: "web", Namespace: "default", UID: "u-1", State: "ready", Pid: 100,
		Namespaces: []Namespace{{"net", 7, "own", "/run/netns/cri-aaa"}, {"pid", 8, "host", ""}},
		Cgroup: &Cgroup{Path: "/pods/aaa", Version: 2, Dirs: []string{"/sys/fs/cgroup/pods/aaa"}, CPUQuota: ptr(int64(10000)),
			CPUPeriod: ptr(int64(100000)), CPUWeight: ptr(int64(79)), MemoryMax: ptr(int64(1 << 20)), MemoryUsage: ptr(int64(4096)),
			PidsCurrent: ptr(int64(3)), CPUUsage: ptr(uint64(1500000))},
		Network: &Network{Name: "cri", NetNS: "/run/netns/cri-aaa", Interface: "eth0", HostInterface: "veth1", Bridge: "cri0",
			IPs: []string{"10.85.0.2", "fd00::2"}},
		Files:     map[string]string{"resolv.conf": "/run/x/resolv.conf", "hosts": "/run/x/hosts"},
		Processes: []Process{{100, 1, "S", 1000, 1, 20, "/pause", []Process{{101, 2, "R", 0, 1, 0, "child", nil}}}},
		Operations: []operation.Timeline{{}, {Key: "run default/web/u-1/0", Total: 3 * time.Millisecond,
			Stages: []operation.Stage{{Name: "network", Start: time.Millisecond, Duration: 2 * time.Millisecond}},
			Parts:  []operation.Stage{{Name: "address", Start: 2 * time.Millisecond, Duration: 10 * time.Microsecond}}}},
	}
	c := &Container{
		ID: "bbb", Name: "app", PodID: "aaa", State: "exited", Engine: "native", Image: "nginx", ImageID: "sha256:1",
		ExitCode: ptr(int32(137)), Reason: "OOMKilled", LogPath: "/var/log/pods/x/0.log",
		Rootfs:     &Rootfs{Lower: []string{"/l/2", "/l/1"}, Upper: "/s/bbb/fs"},
		Mounts:     []Mount{{"/data", "/src", "bind", []string{"ro", "rprivate"}}, {Destination: "/tmp", Type: "tmpfs"}},
		Operations: []operation.Timeline{{Key: "start bbb", Running: true, Total: time.Millisecond, Error: "boom"}},
	}
	// What the CLI prints has travelled as JSON.
	pod, c = viaJSON(t, pod), viaJSON(t, c)
	var b strings.Builder
	if err := pod.WriteText(&b, []*Container{c}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(text, b.String()); diff != "" {
		t.Error(diff)
	}
	var alone strings.Builder
	if err := c.WriteText(&alone); err != nil || !strings.HasSuffix(text, "\n"+alone.String()) {
		t.Errorf("%v\n%s", err, alone.String())
	}
}

func viaJSON[T any](t *testing.T, v *T) *T {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	w := new(T)
	if err := json.Unmarshal(b, w); err != nil {
		t.Fatal(err)
	}
	return w
}
