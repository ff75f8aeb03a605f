package doctor

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCgroups(t *testing.T) {
	const all = "cpuset cpu io memory hugetlb pids\n"
	for name, tc := range map[string]struct {
		files map[string]string // below /sys/fs/cgroup
		want  []string
	}{
		"v2":                {map[string]string{"cgroup.controllers": all}, []string{"ok cgroup-version"}},
		"v2 without memory": {map[string]string{"cgroup.controllers": "cpuset cpu io hugetlb pids\n"}, []string{"ok cgroup-version", "warning cgroup-memory"}},
		"busy root of a cgroup namespace": {
			map[string]string{"cgroup.controllers": all, "cgroup.type": "domain\n", "cgroup.procs": "1\n", "cgroup.subtree_control": "\n"},
			[]string{"note cgroup-delegated", "ok cgroup-version", "warning cgroup-root-busy"},
		},
		"root of a cgroup namespace": {
			map[string]string{"cgroup.controllers": all, "cgroup.type": "domain\n", "cgroup.procs": "", "cgroup.subtree_control": "cpu memory\n",
				"memory.max": "max\n", "cpu.max": "max 100000\n", "pids.max": "max\n"},
			[]string{"note cgroup-delegated", "ok cgroup-version"},
		},
		"root with limits": {
			map[string]string{"cgroup.controllers": all, "cgroup.type": "domain\n", "cgroup.procs": "", "cgroup.subtree_control": "cpu memory\n",
				"memory.max": "1073741824\n", "cpu.max": "50000 100000\n", "pids.max": "max\n"},
			[]string{"ok cgroup-version", "warning cgroup-delegated"},
		},
		"v1": {
			map[string]string{"cpu,cpuacct/cgroup.procs": "", "memory/cgroup.procs": "", "memory/cgroup.sane_behavior": "0\n", "pids/cgroup.procs": "",
				"blkio/cgroup.procs": "", "unified/cgroup.procs": ""},
			[]string{"note cgroup-cpuset", "note cgroup-hugetlb", "warning cgroup-version"},
		},
		"v1, a subtree": {
			map[string]string{"cpu,cpuacct/cgroup.procs": "", "cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "memory/cgroup.procs": "",
				"memory/memory.limit_in_bytes": "9223372036854771712\n", "pids/cgroup.procs": "", "pids/pids.max": "max\n", "blkio/cgroup.procs": ""},
			[]string{"note cgroup-cpuset", "note cgroup-delegated", "note cgroup-hugetlb", "warning cgroup-version"},
		},
		"v1, a subtree with a quota": {
			map[string]string{"cpu,cpuacct/cgroup.procs": "", "cpu,cpuacct/cpu.cfs_quota_us": "150000\n", "memory/cgroup.procs": "",
				"memory/memory.limit_in_bytes": "9223372036854771712\n", "pids/cgroup.procs": "", "blkio/cgroup.procs": ""},
			[]string{"note cgroup-cpuset", "note cgroup-hugetlb", "warning cgroup-delegated", "warning cgroup-version"},
		},
		"none":      {nil, []string{"error cgroup"}},
		"empty dir": {map[string]string{"cpu/": ""}, []string{"error cgroup"}},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{}
			for f, text := range tc.files {
				files["sys/fs/cgroup/"+f] = text
			}
			list := checkCgroups(fakeHost(t, files))
			if diff := cmp.Diff(tc.want, brief(list)); diff != "" {
				t.Error(diff)
			}
			for _, f := range list {
				if f.Title == "" || (f.Severity == Warning || f.Severity == Error) && f.Fix == "" {
					t.Errorf("%+v says too little", f)
				}
			}
		})
	}
}

func TestReadOnlyCgroups(t *testing.T) {
	for mount, want := range map[string]int{
		"31 24 0:27 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs rw\n":           0, // where v1 is mounted below
		"31 24 0:27 / /sys/fs/cgroup/cpu rw,nosuid shared:9 - cgroup cgroup rw,cpu\n": 0,
		"31 24 0:27 / /sys/fs/cgroup/cpu ro,nosuid shared:9 - cgroup cgroup rw,cpu\n": 1,
		"31 24 0:27 / /sys/fs/cgroup ro,nosuid shared:9 - cgroup2 cgroup2 rw\n":       1,
		"31 24 0:27 / /elsewhere ro,nosuid shared:9 - cgroup2 cgroup2 rw\n":           0,
		"not a mount\n": 0,
	} {
		list := fakeHost(t, map[string]string{"proc/self/mountinfo": mount}).readOnly()
		if len(list) != want {
			t.Errorf("%s%+v", mount, list)
		}
	}
}

func TestDriver(t *testing.T) {
	const init = "run/systemd/system/"
	for name, tc := range map[string]struct {
		files   map[string]string
		driver  string
		cmdline string // of a kubelet
		want    []string
		fix     string // of the last finding
	}{
		"systemd":             {files: map[string]string{init: ""}, driver: "auto", want: []string{"ok cgroup-driver"}},
		"no systemd":          {driver: "auto", want: []string{"ok cgroup-driver"}},
		"systemd not init":    {driver: "systemd", want: []string{"error cgroup-driver"}, fix: `cgroup_driver = "auto"`},
		"cgroupfs by systemd": {files: map[string]string{init: ""}, driver: "cgroupfs", want: []string{"warning cgroup-driver"}, fix: `cgroup_driver = "auto"`},
		"kubelet agrees":      {files: map[string]string{init: "", "kubelet.yaml": "kind: KubeletConfiguration\ncgroupDriver: systemd\n"}, driver: "auto", want: []string{"ok cgroup-driver"}},
		"kubelet says nothing": {files: map[string]string{init: "", "kubelet.yaml": "kind: KubeletConfiguration\n"}, driver: "auto",
			want: []string{"ok cgroup-driver"}},
		"kubelet's file is none": {files: map[string]string{init: "", "kubelet.yaml": "a: b: c\n"}, driver: "auto", want: []string{"ok cgroup-driver"}},
		"kubelet differs": {files: map[string]string{init: "", "kubelet.yaml": "cgroupDriver: cgroupfs\n"}, driver: "auto",
			want: []string{"ok cgroup-driver", "warning cgroup-driver-kubelet"},
			fix:  `cgroupDriver: systemd in kubelet's configuration, or cgroup_driver = "cgroupfs" in cri-server's`},
		"a running kubelet's flag": {files: map[string]string{init: "", "kubelet.yaml": "cgroupDriver: systemd\n"}, driver: "auto",
			cmdline: "/usr/bin/kubelet --cgroup-driver cgroupfs -v 2", want: []string{"ok cgroup-driver", "warning cgroup-driver-kubelet"}, fix: "cgroupDriver: systemd"},
		"a running kubelet's file": {files: map[string]string{"other.yaml": "cgroupDriver: systemd\n", "kubelet.yaml": "cgroupDriver: cgroupfs\n"},
			driver: "auto", cmdline: "kubelet --config=$DIR/other.yaml", want: []string{"ok cgroup-driver", "warning cgroup-driver-kubelet"},
			fix: "cgroupDriver: cgroupfs"},
		"not kubelet": {driver: "auto", cmdline: "kubelet-test --cgroup-driver=systemd", want: []string{"ok cgroup-driver"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := fakeHost(t, tc.files)
			h.cfg.CgroupDriver = tc.driver
			if tc.cmdline != "" {
				text := strings.ReplaceAll(strings.ReplaceAll(tc.cmdline, "$DIR", strings.TrimSuffix(h.kubelet, "/kubelet.yaml")), " ", "\x00") + "\x00"
				if err := os.MkdirAll(h.proc+"/77", 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(h.proc+"/77/cmdline", []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			list := checkDriver(h)
			if diff := cmp.Diff(tc.want, brief(list)); diff != "" {
				t.Error(diff)
			}
			if last := list[len(list)-1]; !strings.Contains(last.Fix, tc.fix) || (last.Fix == "") != (tc.fix == "") {
				t.Errorf("%+v", last)
			}
		})
	}
}
