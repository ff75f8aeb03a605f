package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/test/testnode"
)

//go:embed pods/*.yaml
var manifests embed.FS

// ground is the node that kubelet finds: cri-server with its registry, directories and a network with a default route.
type ground struct {
	*testnode.Node
	driver    string
	manifests string // where static pods are
	share     string // what pods mount by hostPath
	cgroup    string // kubelet's cgroupRoot; "" is the root
	before    testnode.Snapshot
}

// address is the node's; it leads nowhere.
const address = "192.0.2.2"

// newGround makes a node and starts cri-server on it. Its files are in a temporary directory, or, where the node is to
// survive a reboot, in disk, which may hold those of an earlier start.
func newGround(ctx context.Context, o settings) (*ground, error) {
	dir, parent, err := o.disk, testnode.CgroupParent("/cri-node-disk", ""), error(nil)
	if o.disk == "" {
		parent = testnode.CgroupParent(fmt.Sprintf("/cri-node-%d", os.Getpid()), "")
		if dir, err = os.MkdirTemp("", "kubelet-test-"); err != nil {
			return nil, err
		}
	}
	g := &ground{driver: o.driver, manifests: filepath.Join(dir, "manifests"), share: filepath.Join(dir, "share")}
	if err := g.privateFiles(dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := route(); err != nil {
		return nil, err
	}
	if o.driver == "cgroupfs" {
		g.cgroup = parent
		if err := makeCgroup(g.cgroup); err != nil {
			return nil, err
		}
	}
	g.Node, err = testnode.Start(ctx, testnode.Options{Dir: dir, Cgroup: parent, Command: o.server,
		Config: fmt.Sprintf("cgroup_driver = %q\n", o.driver)})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return g, nil
}

// warm has a first pod behind it, and what is on the node then is no leak.
func (g *ground) warm(ctx context.Context) error {
	if err := g.WarmUp(ctx); err != nil {
		return fmt.Errorf("%w\n%s", err, g.LogTail())
	}
	g.before = testnode.Take()
	return nil
}

// machineWide are the settings of the whole machine that kubelet writes, with what it wants them to be.
var machineWide = map[string]string{"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000"}

// privateFiles puts directories of the node's own over those that kubelet's paths are fixed to, and files over the
// settings that it writes.
func (g *ground) privateFiles(dir string) error {
	for _, d := range []string{g.manifests, filepath.Join(g.share, "below"), filepath.Join(dir, "lib/kubelet"), filepath.Join(dir, "log/pods"),
		filepath.Join(dir, "log/containers"), filepath.Join(dir, "sys")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil { // pods with users of their own look into it
		return err
	}
	// A user namespace may mount proc only where one is in sight that nothing is mounted over (mount_too_revealing in
	// fs/namespace.c), and below something is.
	if err := os.MkdirAll("/run/proc", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/run/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("proc: %w", err)
	}
	for name, value := range machineWide {
		file, at := filepath.Join(dir, "sys", filepath.Base(name)), "/proc/sys/"+name
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(file, at, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("cover %s: %w", at, err)
		}
		var st unix.Statfs_t
		if err := unix.Statfs(at, &st); err != nil || st.Type == unix.PROC_SUPER_MAGIC {
			return fmt.Errorf("%s is still the machine's", at)
		}
	}
	// Mounts that are made below it later are to arrive in containers.
	if err := errors.Join(unix.Mount(g.share, g.share, "", unix.MS_BIND, ""), unix.Mount("", g.share, "", unix.MS_SHARED, "")); err != nil {
		return fmt.Errorf("shared mount: %w", err)
	}
	for from, to := range map[string]string{"lib": "/var/lib", "log": "/var/log"} {
		if err := unix.Mount(filepath.Join(dir, from), to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("cover %s: %w", to, err)
		}
	}
	return nil
}

// route gives the node an address and a default route, without which kubelet finds no address for itself.
func route() error {
	for _, line := range []string{"link add knode0 type veth peer name knode1", "address add " + address + "/24 dev knode0", "link set knode0 up",
		"link set knode1 up", "route add default via 192.0.2.1"} {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", line, err, out)
		}
	}
	return nil
}

// makeCgroup makes a cgroup in every hierarchy: kubelet takes no cgroupRoot that isn't there.
func makeCgroup(path string) error {
	roots, err := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	if err != nil {
		return err
	}
	var st unix.Statfs_t
	if unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		roots = []string{"/sys/fs/cgroup/cgroup.procs"}
	}
	for _, r := range roots {
		root := filepath.Dir(r)
		if err := os.Mkdir(filepath.Join(root, path), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} { // empty in a new v1 cpuset, and then no process can join
			if b, err := os.ReadFile(filepath.Join(root, f)); err == nil && filepath.Base(root) == "cpuset" {
				if err := os.WriteFile(filepath.Join(root, path, f), b, 0o644); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// place makes static pods of the manifests in pods/.
func (g *ground) place(names ...string) error {
	for _, name := range names {
		b, err := manifests.ReadFile("pods/" + name + ".yaml")
		if err != nil {
			return err
		}
		text := strings.ReplaceAll(string(b), "$SHARE", g.share)
		// Beside and renamed: kubelet must not read half a file. It doesn't look at names with a dot in front.
		beside := filepath.Join(g.manifests, "."+name)
		if err := os.WriteFile(beside, []byte(text), 0o644); err != nil {
			return err
		}
		if err := os.Rename(beside, filepath.Join(g.manifests, name+".yaml")); err != nil {
			return err
		}
	}
	return nil
}

func (g *ground) withdraw(name string) error {
	return os.Remove(filepath.Join(g.manifests, name+".yaml"))
}

// end removes what kubelet left, and says what of that is cri-server's.
func (g *ground) end(ctx context.Context, keep string) error {
	var errs []error
	if g.ServerEnded(ctx) {
		errs = append(errs, errors.New("the server has crashed"), g.StartServer(ctx))
	}
	_, err := g.RemovePods(ctx)
	errs = append(errs, err)
	if g.before != nil {
		if left := g.left(); len(left) > 0 {
			errs = append(errs, errors.New("left on the node:\n\t"+testnode.Lines(left)))
		}
	}
	if g.driver == "systemd" {
		errs = append(errs, exec.Command("systemctl", "stop", "kubepods.slice").Run())
		removeCgroups("kubepods.slice")
	}
	if keep != "" {
		errs = append(errs, g.keep(keep))
	}
	unmountVolumes()
	errs = append(errs, g.Stop(), unix.Unmount("/var/log", unix.MNT_DETACH), unix.Unmount("/var/lib", unix.MNT_DETACH))
	return errors.Join(append(errs, os.RemoveAll(g.Dir))...)
}

// removeCgroups removes a cgroup and those below it from all hierarchies: systemd leaves those that it doesn't manage.
func removeCgroups(name string) {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/" + name)
	for _, root := range append(roots, "/sys/fs/cgroup/"+name) {
		var dirs []string
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, d := range slices.Backward(dirs) {
			_ = unix.Rmdir(d)
		}
	}
}

// left is what is on the node too much after every pod was removed: what kubelet keeps for itself is not.
func (g *ground) left() []string {
	var left []string
	for range 50 {
		left = slices.DeleteFunc(g.before.Added(testnode.Take()), func(l string) bool {
			return strings.HasPrefix(l, "nft ") && (strings.Contains(l, "KUBE-") || strings.Contains(l, ": type ")) ||
				strings.HasPrefix(l, "directory ") || strings.HasPrefix(l, "mount /var/lib/kubelet (") ||
				strings.HasPrefix(l, "cgroup ") && (strings.HasSuffix(l, "/kubepods") || strings.HasSuffix(l, "/besteffort") ||
					strings.HasSuffix(l, "/burstable") || strings.HasSuffix(l, "kubepods.slice") || strings.HasSuffix(l, "burstable.slice") ||
					strings.HasSuffix(l, "besteffort.slice"))
		})
		if len(left) == 0 {
			break
		}
		time.Sleep(100 * time.Millisecond) // the kernel takes down namespaces after their last process
	}
	return left
}

// unmountVolumes detaches the volumes that a kubelet which ended before its pods left mounted.
func unmountVolumes() {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for _, l := range strings.Split(string(b), "\n") {
		if f := strings.Fields(l); len(f) > 5 && strings.HasPrefix(f[4], "/var/lib/kubelet/") {
			_ = unix.Unmount(f[4], unix.MNT_DETACH)
		}
	}
}

// keep copies the logs to dir.
func (g *ground) keep(dir string) error {
	errs := []error{os.MkdirAll(dir, 0o755)}
	logs, _ := filepath.Glob(filepath.Join(g.Dir, "*.log"))
	for _, l := range logs {
		b, err := os.ReadFile(l)
		errs = append(errs, err, os.WriteFile(filepath.Join(dir, filepath.Base(l)), b, 0o644))
	}
	return errors.Join(errs...)
}
