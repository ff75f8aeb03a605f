package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/admin"
	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

const (
	strayID = "feedfacefeedfacefeedfacefeedfacefeedfacefeedfacefeedfacefeedface"
	otherID = "0ddba110ddba110ddba110ddba110ddba110ddba110ddba110ddba110ddba110"
)

// gc takes down what a crash may have left, and nothing that only looks like it.
func TestGC(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	config := f.podConfig("lives")
	pod := f.runPod(config)
	c := f.runContainer(pod, config, containerConfig("c", images.Busybox, "sleep", "100000"))
	others := f.bystanders(c)
	strays := f.strays(c)
	want := slices.Sorted(slices.Values(strays))

	found := f.gc("--dry-run")
	if got := names(found); !slices.Equal(got, want) {
		t.Errorf("to be taken down:\n%q\nwant\n%q", got, want)
	}
	if found = f.gc("--dry-run"); len(found.Garbage) != len(want) {
		t.Errorf("a dry run has changed something: %v", found)
	}
	found = f.gc()
	if got := names(found); !slices.Equal(got, want) {
		t.Errorf("taken down:\n%q\nwant\n%q", got, want)
	}
	for _, g := range found.Garbage {
		if g.Why == "" || g.Error != "" {
			t.Errorf("%+v", g)
		}
	}
	if found = f.gc(); len(found.Garbage) != 0 {
		t.Errorf("left by gc: %v", found)
	}
	others()
	if got := f.exec(c, "echo lives"); got != "lives\n" {
		t.Errorf("the container: %q", got)
	}
	// The same at the start.
	f.strays(c)
	f.restart("with things that have no record")
	if found = f.gc("--dry-run"); len(found.Garbage) != 0 {
		t.Errorf("left by the start: %v", found)
	}
	// A pod whose records are lost altogether: the fixture looks for what is left of it.
	lost := f.podConfig("lost")
	lost.PortMappings = []*cri.PortMapping{{Protocol: cri.Protocol_TCP, ContainerPort: 80, HostPort: 11997}}
	lostPod := f.runPod(lost)
	lostContainer := f.runContainer(lostPod, lost, containerConfig("c", images.Busybox, "sleep", "100000"))
	f.do(f.KillServer())
	f.do(os.Remove(filepath.Join(f.Dir, "root", "sandboxes", lostPod+".json")))
	f.do(os.Remove(filepath.Join(f.Dir, "root", "containers", lostContainer+".json")))
	f.do(f.StartServer(f.ctx))
	if found = f.gc("--dry-run"); len(found.Garbage) != 0 {
		t.Errorf("left by the start: %v", found)
	}
	others()
	f.removePod(pod)
}

func names(c admin.Collected) (all []string) {
	for _, g := range c.Garbage {
		all = append(all, g.Kind+" "+g.Name)
	}
	slices.Sort(all)
	return all
}

func (f *fixture) gc(args ...string) (found admin.Collected) {
	f.t.Helper()
	cmd := exec.Command(f.Program("cri-server"), append([]string{"gc", "--config", f.ConfigFile(), "-o", "json"}, args...)...)
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &found)
	}
	if err != nil {
		f.t.Fatalf("gc %v: %v: %s", args, err, out)
	}
	return found
}

// do ends the test on an error.
func (f *fixture) do(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// strays makes what a server leaves that is killed, of a sandbox and a container that have no record.
func (f *fixture) strays(like string) []string {
	f.t.Helper()
	pin := "/run/netns/cri-" + strayID
	f.pin(pin)
	files := filepath.Join(f.State, "sandboxes", strayID)
	f.do(os.MkdirAll(filepath.Join(files, "shm"), 0o711))
	f.do(unix.Mount("shm", filepath.Join(files, "shm"), "tmpfs", 0, "size=4k"))
	volume := filepath.Join(f.State, "volumes", strayID)
	f.do(os.MkdirAll(filepath.Join(volume, "0"), 0o700))
	f.do(unix.Mount("image", filepath.Join(volume, "0"), "tmpfs", 0, "size=4k"))
	leases, err := filepath.Glob(filepath.Join(f.Dir, "root", "networks", "*"))
	if err != nil || len(leases) == 0 {
		f.t.Fatalf("leases: %v %v", leases, err)
	}
	f.do(os.WriteFile(filepath.Join(leases[0], "10.88.200.200"), []byte(strayID+"\r\neth0"), 0o600))
	cgroup := filepath.Join(filepath.Dir(f.primaryCgroup(like)), strayID)
	f.do(os.Mkdir(cgroup, 0o755))
	f.do(copyMark(f.primaryCgroup(like), cgroup))
	_, path, _ := strings.Cut(strings.TrimPrefix(cgroup, "/sys/fs/cgroup/"), "/")
	return []string{"netns " + pin, "files " + files, "mounts " + volume, "address 10.88.200.200", "cgroup /" + path}
}

// bystanders makes what looks like it and is others'. The result checks that all is there, and takes it down at the end.
func (f *fixture) bystanders(like string) (check func()) {
	f.t.Helper()
	var paths []string
	pin := "/run/netns/other-" + otherID
	f.pin(pin)
	shm := filepath.Join(f.Dir, "tmp", "sandboxes", otherID, "shm")
	f.do(os.MkdirAll(shm, 0o700))
	f.do(unix.Mount("shm", shm, "tmpfs", 0, "size=4k"))
	f.do(os.WriteFile(filepath.Join(shm, "here"), nil, 0o600))
	parent := filepath.Dir(f.primaryCgroup(like))
	unmarked, foreign := filepath.Join(parent, otherID), filepath.Join(parent, strings.ReplaceAll(otherID, "0", "1"))
	f.do(os.Mkdir(unmarked, 0o755))
	f.do(os.Mkdir(foreign, 0o755))
	f.do(unix.Setxattr(foreign, "trusted.cri-server", []byte("cri-server /another/root"), 0))
	sleeper := exec.Command("sleep", "1000")
	f.do(sleeper.Start())
	f.do(os.WriteFile(filepath.Join(unmarked, "cgroup.procs"), []byte(strconv.Itoa(sleeper.Process.Pid)), 0))
	paths = append(paths, pin, filepath.Join(shm, "here"), unmarked, foreign)
	f.t.Cleanup(func() {
		_ = sleeper.Process.Kill()
		_ = sleeper.Wait()
		_ = unix.Unmount(pin, unix.MNT_DETACH)
		_ = unix.Unmount(shm, unix.MNT_DETACH)
		_ = os.Remove(pin)
		_ = unix.Rmdir(unmarked)
		_ = unix.Rmdir(foreign)
	})
	return func() {
		f.t.Helper()
		for _, p := range paths {
			if _, err := os.Stat(p); err != nil {
				f.t.Errorf("a bystander is gone: %v", err)
			}
		}
		if err := sleeper.Process.Signal(unix.Signal(0)); err != nil {
			f.t.Errorf("a bystander was killed: %v", err)
		}
	}
}

// pin pins a new network namespace as an earlier server would have.
func (f *fixture) pin(path string) {
	f.t.Helper()
	f.do(os.WriteFile(path, nil, 0o444))
	f.do(exec.Command("unshare", "--net="+path, "true").Run())
}

// primaryCgroup is the directory of a container's cgroup in the hierarchy that carries the marks.
func (f *fixture) primaryCgroup(id string) string {
	f.t.Helper()
	for _, dir := range f.cgroupsOf(id) {
		if n, err := unix.Getxattr(dir, "trusted.cri-server", make([]byte, 256)); err == nil && n > 0 {
			return dir
		}
	}
	f.t.Fatalf("no cgroup of %s is marked", id)
	return ""
}

func copyMark(from, to string) error {
	b := make([]byte, 256)
	n, err := unix.Getxattr(from, "trusted.cri-server", b)
	if err == nil {
		err = unix.Setxattr(to, "trusted.cri-server", b[:n], 0)
	}
	return err
}
