package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// What kubelet sends for a container with the default procMount.
var (
	masked = []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
	readOnly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// tenant is an unprivileged container as kubelet asks for it.
func tenant(name string, ns *cri.NamespaceOption, command ...string) *cri.ContainerConfig {
	c := containerConfig(name, images.Busybox, command...)
	sc := c.Linux.SecurityContext
	sc.NamespaceOptions, sc.MaskedPaths, sc.ReadonlyPaths = ns, masked, readOnly
	sc.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	return c
}

// attempt runs a script that may fail and returns what it wrote.
func (f *fixture) attempt(id, script string) string {
	f.t.Helper()
	r, err := f.Runtime.ExecSync(f.ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Timeout: 20})
	if err != nil {
		f.t.Fatalf("exec %q: %v", script, err)
	}
	return string(r.Stdout) + string(r.Stderr)
}

// A tenant tries what the node must not let it do; a script that gets through says so with the word GOT.
func TestHostileTenant(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	mapping := []*cri.IDMapping{{HostId: 200000, Length: 65536}}
	userns := &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER,
		UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: mapping, Gids: mapping}}
	for name, ns := range map[string]*cri.NamespaceOption{"plain": ownPid, "userns": userns} {
		pod := f.podConfig("tenant-" + name)
		pod.Linux.SecurityContext.NamespaceOptions = ns
		id := f.runPod(pod)
		c := f.runContainer(id, pod, tenant("root", ns, "sleep", "1000"))
		for what, script := range map[string]string{
			"devices": `for d in 'b 8 0' 'b 254 0' 'b 7 0' 'c 1 1' 'c 1 2' 'c 1 4' 'c 1 11' 'c 4 0' 'c 10 200' 'c 10 229' 'c 10 232' 'c 10 237'; do
				rm -f /tmp/d; mknod /tmp/d $d || continue; (: </tmp/d) && echo GOT read $d; (: >>/tmp/d) && echo GOT write $d; done`,
			"kernel settings": `for f in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sysrq-trigger /sys/kernel/uevent_helper
				/sys/fs/cgroup/memory/release_agent /sys/fs/cgroup/release_agent; do echo x >$f && echo GOT $f; done`,
			"read-only trees": `for d in /sys /sys/fs/cgroup /sys/fs/cgroup/*; do mkdir $d/x && echo GOT $d; done`,
			"masked paths": `for f in ` + strings.Join(masked, " ") + `; do [ -d $f ] && [ -n "$(ls -A $f)" ] && echo GOT $f
				[ -f $f -o -c $f ] && [ -n "$(head -c 1 $f)" ] && echo GOT $f; done`,
			"mounts": `mount -t tmpfs x /tmp && echo GOT mount; mount -o remount,rw /sys && echo GOT remount; umount /proc/keys && echo GOT umount
				mount -o bind,remount,rw /proc/sys && echo GOT bind`,
			"namespaces": `unshare -U true && echo GOT user; unshare -m true && echo GOT mount; unshare -n true && echo GOT net
				unshare -p true && echo GOT pid; unshare -u true && echo GOT uts; nsenter -t 1 -m true && echo GOT nsenter`,
			"cgroup paths":  `grep -v -E ':/(exec-[0-9]+)?$' /proc/self/cgroup /proc/1/cgroup && echo GOT; grep -F '` + filepath.Base(pod.Linux.CgroupParent) + `' /proc/self/mountinfo && echo GOT`,
			"host inodes":   `for f in /proc/self/fd/0 /proc/1/fd/0 /proc/keys; do touch -d 2001-01-01 $f && echo GOT $f; done`,
			"confinement":   `for p in self 1; do for want in 'Seccomp:	2' 'CapInh:	0000000000000000' 'CapAmb:	0000000000000000' 'CapBnd:	00000000a80425fb' 'CapPrm:	00000000a80425fb'; do grep -q "$want" /proc/$p/status || echo GOT $p not $want; done; done`,
			"host name":     `hostname evil && echo GOT; dmesg >/dev/null && echo GOT log`,
			"terminal seen": `[ -e /dev/console ] && echo GOT console`,
		} {
			if out := f.attempt(c, script); strings.Contains(out, "GOT") {
				t.Errorf("%s, %s: %s", name, what, out)
			}
		}
		user := tenant("user", ns, "sleep", "1000")
		user.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
		c = f.runContainer(id, pod, user)
		for _, p := range []string{"self", "1"} {
			caps := f.exec(c, "grep -E 'Cap(Inh|Prm|Eff|Amb)' /proc/"+p+"/status")
			if strings.Count(caps, "\t0000000000000000\n") != 4 {
				t.Errorf("%s: %s of a user: %s", name, p, caps)
			}
		}
		if name == "userns" {
			f.hostIDs(c, 201000)
		}
		f.removePod(id)
	}
}

// hostIDs checks a container's user as the host sees it.
func (f *fixture) hostIDs(c string, want int) {
	f.t.Helper()
	s, err := f.Runtime.ContainerStatus(f.ctx, &cri.ContainerStatusRequest{ContainerId: c, Verbose: true})
	if err != nil {
		f.t.Fatal(err)
	}
	pid := regexp.MustCompile(`"pid":\s*(\d+)`).FindStringSubmatch(s.Info["info"])
	if pid == nil {
		f.t.Fatalf("no pid in %v", s.Info)
	}
	if got := readFile(f.t, "/proc/"+pid[1]+"/status"); !regexp.MustCompile(`(?m)^Uid:(\s+` + strconv.Itoa(want) + `){4}$`).MatchString(got) {
		f.t.Errorf("on the host: %s", got)
	}
}

// A container that shares the node's, or the pod's, pid namespace must not come to more than it has by the processes
// that belong to the runtime.
func TestRuntimeProcessesAreClosed(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	// A process that is just being made has the name of its parent, so the name must still be the same afterwards.
	const look = `got() { [ "$(cat $p/comm)" = $n ] && echo GOT $*; }
		for p in /proc/[1-9]*; do n=$(cat $p/comm 2>/dev/null); case $n in cri-server|cri-monitor|pause)
		[ $n != pause ] || grep -q ':/\.\./[0-9a-f]*$' $p/cgroup || continue # another runtime's
		echo seen $n
		for x in environ mem; do (: <$p/$x) && got $n $x; done
		for x in exe cwd root fd/0 fd/1 ns/mnt; do ls -l $p/$x 2>/dev/null | grep -q -e '->' && got $n $x; done; esac; done 2>/dev/null`
	for _, x := range []struct {
		name string
		mode cri.NamespaceMode
		user int64
		seen string
	}{{"node", cri.NamespaceMode_NODE, 0, "cri-monitor"}, {"pod", cri.NamespaceMode_POD, 0, "pause"}, {"pause", cri.NamespaceMode_POD, 65535, "pause"}} {
		pod := f.podConfig("pid-" + x.name)
		ns := &cri.NamespaceOption{Pid: x.mode}
		pod.Linux.SecurityContext.NamespaceOptions = ns
		id := f.runPod(pod)
		config := tenant("c", ns, "sleep", "1000")
		config.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: x.user}
		config.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: x.user}
		c := f.runContainer(id, pod, config)
		if out := f.attempt(c, look); !strings.Contains(out, "seen "+x.seen) || strings.Contains(out, "GOT") {
			t.Errorf("%s: %s", x.name, out)
		}
		f.removePod(id)
	}
}

// Log files are made beneath the pod's log directory, whatever somebody has put there.
func TestHostileLogDirectory(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	pod := f.podConfig("logs")
	id := f.runPod(pod)
	canary := filepath.Join(f.Dir, "tmp", "canary")
	if err := os.Mkdir(canary, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, link := range []string{"dir", "file.log"} {
		target := canary
		if link == "file.log" {
			target += "/file"
		}
		if err := os.Symlink(target, filepath.Join(pod.LogDirectory, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"file.log", "dir/x.log", "../canary/x.log", canary + "/x.log", "."} {
		c := tenant("c", ownPid, "echo", "x")
		c.LogPath = path
		_, err := f.Runtime.CreateContainer(f.ctx, &cri.CreateContainerRequest{PodSandboxId: id, Config: c, SandboxConfig: pod})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", path, err)
		}
	}
	if entries, err := os.ReadDir(canary); err != nil || len(entries) > 0 {
		t.Errorf("written outside: %v %v", entries, err)
	}
	f.removePod(id)
}
