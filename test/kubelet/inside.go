package main

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var numbered = regexp.MustCompile(`(?m) stdout F line (\d+) `)

// rotation waits for two rotated logs, of which kubelet has compressed the older, and looks for lines that got lost
// while the log was changed under the container.
func rotation(r *run) error {
	var logs []string
	err := r.until(2*time.Minute, func() error {
		logs, _ = filepath.Glob("/var/log/pods/default_chatty-" + nodeName + "_*/chatty/0.log*")
		slices.Sort(logs) // the current one first, then by their time
		if len(logs) != 3 || !strings.HasSuffix(logs[1], ".gz") || strings.HasSuffix(logs[2], ".gz") {
			return fmt.Errorf("no two rotated logs: %v", logs)
		}
		return nil
	})
	if err != nil {
		return err
	}
	var last int
	for _, file := range []string{logs[1], logs[2], logs[0]} {
		text, err := readLog(file)
		if errors.Is(err, os.ErrNotExist) {
			return rotation(r) // rotated meanwhile
		}
		if err != nil {
			return err
		}
		for i, m := range numbered.FindAllStringSubmatch(text, -1) {
			n, _ := strconv.Atoi(m[1])
			if (i > 0 || file != logs[1]) && n != last+1 {
				if _, err := os.Stat(logs[1]); err != nil {
					return rotation(r)
				}
				return fmt.Errorf("%s: line %d follows line %d", filepath.Base(file), n, last)
			}
			last = n
		}
	}
	// A log that was changed a moment ago has none yet, and kubelet looks into the current one only.
	return r.until(soon, func() error {
		out, err := r.get("/containerLogs/default/chatty-" + nodeName + "/chatty?tailLines=3")
		if err == nil && (strings.Count(string(out), "\n") != 3 || !strings.HasPrefix(string(out), "line ")) {
			err = fmt.Errorf("the last three lines are %q", out)
		}
		return err
	})
}

func readLog(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var source io.Reader = f
	if strings.HasSuffix(file, ".gz") {
		if source, err = gzip.NewReader(f); err != nil {
			return "", err
		}
	}
	b, err := io.ReadAll(source)
	return string(b), err
}

func volumes(r *run) error {
	if err := r.until(soon, func() error { return r.ready("volumes") }); err != nil {
		return err
	}
	p, err := r.pod("volumes")
	if err != nil {
		return err
	}
	ip := regexp.QuoteMeta(p.Status.PodIP)
	// What is mounted on the node after the container has started arrives in it.
	late := filepath.Join(r.share, "late")
	if err := os.MkdirAll(late, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", late, "tmpfs", 0, ""); err != nil {
		return err
	}
	defer func() { _ = unix.Unmount(late, unix.MNT_DETACH) }()
	return errors.Join(os.WriteFile(filepath.Join(late, "a"), []byte("late\n"), 0o644), r.expect(
		expect{"volumes", "reader", "cat /disk/a /memory/a", "disk\nmemory"},
		expect{"volumes", "reader", "touch /disk/b", ".*[Rr]ead-only.*"},
		expect{"volumes", "reader", "grep ' /memory ' /proc/mounts", "tmpfs .*size=8192k.*"},
		expect{"volumes", "reader", "grep -c ' /disk tmpfs' /proc/mounts", "0"},
		expect{"volumes", "writer", "cat /host/from-pod", "host"},
		expect{"volumes", "reader", "touch /sub/x; ls /sub", "x"},
		expect{"volumes", "reader", "echo hi >/etc/one-file; cat /etc/one-file", "hi"},
		expect{"volumes", "reader", "cat /slave/late/a", "late"},
		expect{"volumes", "reader", "cat /about/colour; echo; cat /about/cpu; echo; echo $MY_IP", "green\n500\n" + ip},
		expect{"volumes", "reader", "cat /image/var/www/index.html; touch /image/x", "hello from a pod\n.*[Rr]ead-only.*"}))
}

// limits compares what the manifest says with the container's cgroup as it sees it itself, and measures its effect.
func limits(r *run) error {
	file := func(v1, v2 string) string {
		return "for f in /sys/fs/cgroup/" + v1 + " /sys/fs/cgroup/" + v2 + "; do [ ! -e $f ] || cat $f; done"
	}
	err := r.expect(
		expect{"limits", "held", file("memory/memory.limit_in_bytes", "memory.max"), "67108864"},
		expect{"limits", "held", file("cpu/cpu.cfs_quota_us", "cpu.max"), "10000( 100000)?"},
		expect{"limits", "held", file("cpu/cpu.shares", "cpu.weight"), "51|[23]|17"})
	if err != nil {
		return err
	}
	usage := "awk '{print $14+$15}' /proc/1/stat; cut -d. -f1 /proc/uptime"
	var spent, at [2]float64
	for i := range spent {
		out, err := r.inside("limits", "held", usage)
		if err != nil {
			return err
		}
		if _, err := fmt.Sscan(out, &spent[i], &at[i]); err != nil {
			return fmt.Errorf("%q: %w", out, err)
		}
		if i == 0 {
			err = r.until(30*time.Second, func() error {
				b, err := os.ReadFile("/proc/uptime")
				var now float64
				if _, scan := fmt.Sscan(string(b), &now); err == nil && (scan != nil || now < at[0]+6) {
					err = errors.New("the measurement takes 6 s")
				}
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	// In ticks of 10 ms: 100m of a cpu are 10 of them a second.
	if rate := (spent[1] - spent[0]) / 100 / (at[1] - at[0]); rate > 0.14 {
		return fmt.Errorf("it uses %.2f cpus of 0.1", rate)
	}
	return nil
}

func outOfMemory(r *run) error {
	return r.until(soon, func() error {
		p, err := r.pod("limits")
		if err != nil {
			return err
		}
		c := p.container("greedy")
		t := c.State.Terminated
		if t == nil {
			t = c.LastState.Terminated
		}
		if t == nil || t.Reason != "OOMKilled" || t.ExitCode != 137 {
			return fmt.Errorf("not OOMKilled: %v", p)
		}
		return nil
	})
}

// gone waits until the containers of a pod whose manifest goes have ended, and returns how long that took.
func (r *run) gone(name string) (time.Duration, error) {
	began := time.Now()
	if err := r.withdraw(name); err != nil {
		return 0, err
	}
	err := r.until(soon, func() error {
		running, err := r.Runtime.ListContainers(r.ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
			State:         &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING},
			LabelSelector: map[string]string{"io.kubernetes.pod.name": name + "-" + nodeName}}})
		if err == nil && len(running.Containers) > 0 {
			err = fmt.Errorf("its containers run: %v", running.Containers)
		}
		return err
	})
	return time.Since(began), err
}

func graceful(r *run) error {
	if _, err := r.running("graceful", "graceful"); err != nil {
		return err
	}
	took, err := r.gone("graceful")
	if err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(r.share, "end"))
	if got := strings.Fields(string(b)); err == nil && strings.Join(got, " ") != "start stop term" {
		err = fmt.Errorf("the hooks ran as %q", got)
	}
	if err == nil && took > 15*time.Second {
		err = fmt.Errorf("it took %v", took)
	}
	return err
}

func stubborn(r *run) error {
	if _, err := r.running("stubborn", "stubborn"); err != nil {
		return err
	}
	took, err := r.gone("stubborn")
	if err == nil && (took < 3*time.Second || took > 15*time.Second) {
		err = fmt.Errorf("a grace period of 3 s took %v", took)
	}
	return err
}

func securityContext(r *run) error {
	status := func(field string) string { return "grep ^" + field + ": /proc/1/status | tr -s '\\t ' ' '" }
	return r.expect(
		expect{"secure", "tight", "id -u; id -g; id -G", "1000\n1001\n1001 1002 1003 50000"},
		expect{"secure", "tight", "touch /x", ".*[Rr]ead-only.*"},
		expect{"secure", "tight", "touch /disk/x; ls -n /disk | awk '/x/{print $3, $4}'", "1000 1002"},
		expect{"secure", "tight", status("CapBnd"), "CapBnd: 0000000000000000"},
		expect{"secure", "tight", status("NoNewPrivs"), "NoNewPrivs: 1"},
		expect{"secure", "tight", status("Seccomp"), "Seccomp: 2"},
		expect{"secure", "root", status("CapEff"), "CapEff: 0000000002001000"},
		expect{"secure", "root", "unshare -U true 2>/dev/null || echo refused", "refused"},
		expect{"secure", "privileged", status("Seccomp"), "Seccomp: 0"},
		expect{"secure", "privileged", "mkdir /mnt; mount -t tmpfs none /mnt && echo mounted", "mounted"},
		expect{"secure", "unconfined", status("Seccomp"), "Seccomp: 0"},
		expect{"secure", "unconfined", status("CapEff"), "CapEff: 0000000000000000"})
}

func names(r *run) error {
	return r.expect(
		expect{"secure", "tight", "hostname", "fortress"},
		expect{"secure", "tight", "cat /etc/hosts", ".*Kubernetes-managed.*192.0.2.7\\s+drawbridge.test.*"},
		expect{"secure", "tight", "cat /etc/resolv.conf", "search keep.test\nnameserver 192.0.2.53\noptions ndots:3"},
		expect{"secure", "tight", "cat /proc/sys/net/ipv4/ip_local_port_range", "40000\\s+50000"})
}

func userNamespace(r *run) error {
	err := r.expect(
		expect{"userns", "mapped", "id -u; awk '{print $1, ($2 > 0), $3}' /proc/self/uid_map", "0\n0 1 65536"},
		expect{"userns", "mapped", "ls -n /disk | awk '/mine/{print $3, $4}'", "0 0"})
	if err != nil {
		return err
	}
	files, _ := filepath.Glob("/var/lib/kubelet/pods/*/volumes/kubernetes.io~empty-dir/disk/mine")
	for _, f := range files {
		if st, err := os.Stat(f); err != nil || st.Sys().(*syscall.Stat_t).Uid != 0 {
			return fmt.Errorf("%s: not root's on the node: %w", f, err)
		}
	}
	if len(files) != 1 {
		return fmt.Errorf("the volume on the node: %v", files)
	}
	return nil
}

func sharedProcesses(r *run) error {
	return r.expect(
		expect{"shared", "one", "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -o 'sleep 234567' | sort -u", "sleep 234567"},
		expect{"shared", "two", "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -o 'sleep 123456' | sort -u", "sleep 123456"})
}
