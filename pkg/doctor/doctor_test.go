package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/config"
)

// fakeHost has the given files; a name that ends in / is a directory.
func fakeHost(t *testing.T, files map[string]string) *host {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(p, 0o755)
		} else {
			err = os.WriteFile(p, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cfg := config.New()
	cfg.Network.ConfDir = filepath.Join(dir, "net.d")
	cfg.Network.BinDirs = []string{filepath.Join(dir, "bin")}
	cfg.Root = filepath.Join(dir, "root", "not", "made")
	return &host{cfg: cfg, proc: filepath.Join(dir, "proc"), sys: filepath.Join(dir, "sys"), run: filepath.Join(dir, "run"),
		kubelet: filepath.Join(dir, "kubelet.yaml")}
}

// brief is what tests compare: "warning cgroup-version".
func brief(list []Finding) []string {
	var s []string
	for _, f := range list {
		s = append(s, fmt.Sprintf("%s %s", f.Severity, f.Code))
	}
	slices.Sort(s)
	return s
}

func TestChecks(t *testing.T) {
	for name, tc := range map[string]struct {
		files map[string]string
		edit  func(*config.Config)
		check func(*host) []Finding
		want  []string
	}{
		"namespaces": {
			files: map[string]string{"proc/self/ns/mnt": "", "proc/self/ns/net": "", "proc/self/ns/pid": "", "proc/self/ns/ipc": "",
				"proc/self/ns/uts": "", "proc/self/ns/user": "", "proc/self/ns/cgroup": "", "proc/sys/user/max_user_namespaces": "100\n"},
			check: checkNamespaces, want: []string{"ok userns"},
		},
		"few namespaces": {
			files: map[string]string{"proc/self/ns/mnt": "", "proc/self/ns/pid": "", "proc/self/ns/ipc": "", "proc/self/ns/uts": "",
				"proc/self/ns/user": "", "proc/sys/user/max_user_namespaces": "0\n"},
			check: checkNamespaces, want: []string{"error namespace-net", "warning cgroupns", "warning userns"},
		},
		"no overlay":  {files: map[string]string{"proc/filesystems": "\text4\n"}, check: checkMounts, want: []string{"ok mount-setattr", "warning overlay"}},
		"overlay":     {files: map[string]string{"proc/filesystems": "nodev\toverlay\n"}, check: checkMounts, want: []string{"ok mount-setattr", "ok overlay"}},
		"no seccomp":  {check: checkSeccomp, want: []string{"error seccomp"}},
		"old seccomp": {files: map[string]string{"proc/sys/kernel/seccomp/actions_avail": "kill errno\n"}, check: checkSeccomp, want: []string{"note seccomp"}},
		"seccomp":     {files: map[string]string{"proc/sys/kernel/seccomp/actions_avail": "kill user_notif\n"}, check: checkSeccomp, want: []string{"ok seccomp"}},
		"all capabilities": {
			files: map[string]string{"proc/self/status": "Name:\tx\nCapEff:\t000001ffffffffff\n"}, check: checkCapabilities,
			want: []string{"ok capabilities"},
		},
		"no CAP_SYS_RESOURCE": {
			files: map[string]string{"proc/self/status": "CapEff:\t000001fffeffffff\n"}, check: checkCapabilities,
			want: []string{"warning cap-sys-resource"},
		},
		"no status": {check: checkCapabilities, want: []string{"error capabilities"}},
		"apparmor and selinux": {
			files: map[string]string{"sys/module/apparmor/parameters/enabled": "Y\n", "sys/fs/selinux/enforce": "0"}, check: checkLSM,
			want: []string{"ok apparmor", "ok selinux"},
		},
		"neither": {check: checkLSM, want: []string{"note apparmor", "note selinux"}},
		"forwarding": {
			files: map[string]string{"proc/sys/net/ipv4/ip_forward": "1\n", "proc/sys/net/ipv6/conf/all/forwarding": "0\n"}, check: checkForwarding,
			want: []string{"note ipv6-forward", "ok ip-forward"},
		},
		"no forwarding": {files: map[string]string{"proc/sys/net/ipv4/ip_forward": "0\n"}, check: checkForwarding, want: []string{"warning ip-forward"}},
		"embedded forwards by itself": {
			files: map[string]string{"proc/sys/net/ipv4/ip_forward": "0\n"}, edit: func(c *config.Config) { c.Network.Mode = "embedded" },
			check: checkForwarding, want: []string{"note ip-forward"},
		},
		"limits": {
			files: map[string]string{"proc/sys/fs/inotify/max_user_instances": "128\n", "proc/sys/kernel/pid_max": "4194304\n"},
			edit:  func(c *config.Config) { c.NofileHard = 1 }, check: checkLimits, want: []string{"warning inotify-instances"},
		},
		"runtimes": {
			files: map[string]string{"runc": ""},
			edit: func(c *config.Config) {
				c.Runtimes["runc"] = &config.Runtime{Engine: "oci", Path: "/nonexistent/runc"}
				c.Runtimes["sh"] = &config.Runtime{Engine: "oci", Path: "/bin/sh"}
				c.Runtimes["dir"] = &config.Runtime{Engine: "oci", Path: "/"}
			},
			check: checkRuntimes, want: []string{"error runtime-dir", "error runtime-runc"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := fakeHost(t, tc.files)
			if tc.edit != nil {
				tc.edit(h.cfg)
			}
			list := tc.check(h)
			if diff := cmp.Diff(tc.want, brief(list)); diff != "" {
				t.Error(diff)
			}
			for _, f := range list {
				if f.Title == "" || f.Severity == Error && f.Fix == "" && f.Code != "capabilities" {
					t.Errorf("%+v says too little", f)
				}
			}
		})
	}
}

func TestBridgeNetfilter(t *testing.T) {
	const file = "proc/sys/net/bridge/bridge-nf-call-iptables"
	for _, c := range []struct{ value, mode, want string }{
		{"1\n", "embedded", "ok"}, {"0\n", "embedded", "warning"}, {"0\n", "auto", "note"}, {"", "auto", "note"},
	} {
		files := map[string]string{file: c.value}
		if c.value == "" {
			files = nil
		}
		h := fakeHost(t, files)
		h.cfg.Network.Mode = c.mode
		if diff := cmp.Diff([]string{c.want + " bridge-netfilter"}, brief(h.bridgeNetfilter())); diff != "" {
			t.Errorf("%q %s: %s", c.value, c.mode, diff)
		}
	}
}

func TestCNI(t *testing.T) {
	h := fakeHost(t, map[string]string{"net.d/README": ""})
	n := h.cfg.Network
	if f := cniFinding(n.ConfDir, n.BinDirs, "auto"); f.Severity != Error || f.Code != "cni-config" {
		t.Errorf("%+v", f)
	}
	h = fakeHost(t, map[string]string{"net.d/10-a.conflist": "{}"})
	n = h.cfg.Network
	if f := cniFinding(n.ConfDir, n.BinDirs, "auto"); f.Severity != OK {
		t.Errorf("%+v", f)
	}
	if f := cniFinding(n.ConfDir, n.BinDirs, "cni"); f.Code != "cni-plugins" {
		t.Errorf("%+v", f)
	}
}

func TestKernelVersions(t *testing.T) {
	for release, want := range map[string]Severity{
		"6.18.2-amd64": OK, "5.14.0-427.el9": OK, "5.13.19": Error, "4.18.0": Error, "5.9-rc1": Error, "6.1+": OK, "odd": Error,
	} {
		if f := kernelFinding(release); f.Severity != want {
			t.Errorf("%s: %+v", release, f)
		}
	}
}

func TestSpace(t *testing.T) {
	for _, tc := range []struct {
		free, all uint64
		want      Severity
	}{{50, 100, OK}, {9, 100, Warning}, {1, 100, Error}, {0, 0, OK}} {
		if f := space("disk", "bytes", tc.free, tc.all, "/x"); f.Severity != tc.want {
			t.Errorf("%d of %d: %+v", tc.free, tc.all, f)
		}
	}
	if list := checkDisk(fakeHost(t, nil)); len(list) == 0 {
		t.Error("a root that is not made yet must be judged by what it will lie on")
	}
}

func TestAHangingCheckIsLeft(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	list := examine(t.Context(), fakeHost(t, nil), []check{
		{"fine", func(*host) []Finding { return []Finding{{Code: "fine", Severity: OK}} }},
		{"nfs", func(*host) []Finding { <-release; return nil }},
	}, testns.Patience(200*time.Millisecond)) // which also the other one has
	if diff := cmp.Diff([]string{"error nfs-hangs", "ok fine"}, brief(list)); diff != "" {
		t.Error(diff)
	}
	if list[0].Severity != Error || Worst(list) != Error || Worst(nil) != OK {
		t.Error("the worst comes first")
	}
}

func TestOutput(t *testing.T) {
	list := Examine(context.Background(), config.New())
	if len(list) < 10 {
		t.Errorf("%+v", list)
	}
	var b bytes.Buffer
	if err := WriteJSON(&b, list); err != nil {
		t.Fatal(err)
	}
	var again []Finding
	if err := json.Unmarshal(b.Bytes(), &again); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(list, again); diff != "" {
		t.Error(diff)
	}
	b.Reset()
	if err := WriteText(&b, []Finding{
		{Code: "a", Severity: Warning, Title: "no a", Text: "no b either", Fix: "get a", Since: "6.1"},
		{Code: "c", Severity: OK, Title: "c", Fix: "nothing"},
	}); err != nil {
		t.Fatal(err)
	}
	pad := strings.Repeat(" ", 32)
	want := "warning  a                      no a\n" + pad + "no b either\n" + pad + "fix: get a\n" + pad + "since Linux 6.1\n" +
		"ok       c                      c\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}
