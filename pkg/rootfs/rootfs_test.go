package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

func TestMain(m *testing.M) { testns.Main(m) }

func TestValidate(t *testing.T) {
	for name, r := range map[string]Rootfs{
		"nothing":        {},
		"both":           {Lower: []string{"/a"}, Path: "/b"},
		"relative":       {Lower: []string{"a"}},
		"not clean":      {Path: "/a/../b"},
		"no work":        {Lower: []string{"/a"}, Upper: "/u"},
		"not siblings":   {Lower: []string{"/a"}, Upper: "/x/u", Work: "/y/w"},
		"options for it": {Path: "/a", Options: []string{"volatile"}},
	} {
		if _, err := r.Open(Options{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// stack makes n lower layers, each with a file of its own name, and perhaps an upper.
func stack(t *testing.T, n int, upper bool) Rootfs {
	t.Helper()
	testns.Root(t)
	dir := t.TempDir()
	var r Rootfs
	for i := range n {
		l := filepath.Join(dir, fmt.Sprintf("layer-%03d-%s", i, strings.Repeat("x", 60)))
		write(t, filepath.Join(l, fmt.Sprintf("f%d", i)), fmt.Sprint(i))
		write(t, filepath.Join(l, "top"), fmt.Sprint(i))
		r.Lower = append(r.Lower, l)
	}
	if upper {
		r.Upper, r.Work = filepath.Join(dir, "c", "upper"), filepath.Join(dir, "c", "work")
		for _, d := range []string{r.Upper, r.Work} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	return r
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

type opener func(Rootfs, Options) (int, error)

var openers = map[string]opener{"descriptors": Rootfs.overlayByFD, "names": byName, "mount(2)": Rootfs.overlayByMount}

// byName calls overlayByName on a thread of its own, which is thrown away.
func byName(r Rootfs, o Options) (fd int, err error) {
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread()
		if err = unix.Unshare(unix.CLONE_FS); err == nil {
			fd, err = r.overlayByName(o)
		}
	})
	wg.Wait()
	return fd, err
}

func TestOverlay(t *testing.T) {
	for how, open := range openers {
		t.Run(how, func(t *testing.T) {
			r := stack(t, 200, true)
			r.Options = []string{"volatile"}
			fd, err := open(r, Options{})
			if how != "mount(2)" && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)) {
				t.Skip("this kernel takes no layers by descriptor, or one by one: ", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			dir := fdPath(fd)
			for _, f := range []string{"f0", "f1", "f199"} {
				if b, err := os.ReadFile(filepath.Join(dir, f)); err != nil || string(b) != f[1:] {
					t.Errorf("%s: %q %v", f, b, err)
				}
			}
			if b, _ := os.ReadFile(filepath.Join(dir, "top")); string(b) != "0" {
				t.Errorf("the first lower is not on top: %q", b)
			}
			write(t, filepath.Join(dir, "new"), "n")
			if b, _ := os.ReadFile(filepath.Join(r.Upper, "new")); string(b) != "n" {
				t.Error("the new file is not in upper")
			}
		})
	}
}

func TestReadOnly(t *testing.T) {
	for name, tt := range map[string]struct {
		lowers int
		upper  bool
	}{"one layer": {1, false}, "two layers": {2, false}, "with upper": {1, true}} {
		t.Run(name, func(t *testing.T) {
			f, err := stack(t, tt.lowers, tt.upper).Open(Options{ReadOnly: true})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			err = os.WriteFile(filepath.Join(fdPath(int(f.Fd())), "new"), nil, 0o644)
			if !errors.Is(err, unix.EROFS) {
				t.Errorf("write: %v", err)
			}
		})
	}
}

// TestMountAt also looks at what a container would learn about the host from mountinfo.
func TestMountAt(t *testing.T) {
	r := stack(t, 3, true)
	target := t.TempDir()
	if err := r.MountAt(target, Options{}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, " "+target+" ") && strings.Contains(line, "layer-") {
			t.Errorf("host paths show: %s", line)
		}
	}
	if err := r.MountAt(filepath.Join(target, "missing"), Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing target: %v", err)
	}
}

func TestView(t *testing.T) {
	r := stack(t, 2, true)
	if err := os.Symlink("/etc/passwd", filepath.Join(r.Upper, "out")); err != nil {
		t.Fatal(err)
	}
	root, err := r.View()
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if b, err := root.ReadFile("f1"); err != nil || string(b) != "1" {
		t.Errorf("f1: %q %v", b, err)
	}
	if _, err := root.ReadFile("out"); err == nil {
		t.Error("a link led out of the root")
	}
	if b, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(b), "overlay") && strings.Contains(string(b), r.Upper) {
		t.Error("a mount is left")
	}
	r.Lower = append(r.Lower, "/no/such/layer")
	if _, err := r.View(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing layer: %v", err)
	}
	if _, err := (Rootfs{Path: filepath.Join(t.TempDir(), "none")}).View(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
}

// userNS makes a user namespace that maps 0 to base.
func userNS(t *testing.T, base int) *os.File {
	t.Helper()
	m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: base, Size: 65536}}
	p, err := os.StartProcess("/bin/sleep", []string{"sleep", "60"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, UidMappings: m, GidMappings: m}})
	if err != nil {
		t.Skip("no user namespaces: ", err)
	}
	defer func() {
		_ = p.Kill()
		_, _ = p.Wait()
	}()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", p.Pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestIDMapped(t *testing.T) {
	for how, open := range openers {
		if how == "names" { // an id mapping belongs to a clone
			continue
		}
		t.Run(how, func(t *testing.T) {
			r := stack(t, 2, true)
			fd, err := open(r, Options{UserNS: userNS(t, 100000), RootUID: 100000, RootGID: 100000})
			if errors.Is(err, unix.EINVAL) || how == "descriptors" && errors.Is(err, unix.EOPNOTSUPP) {
				t.Skip("no id-mapped mounts here, or no layers by descriptor: ", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(fdPath(fd), "f1"), &st); err != nil || st.Uid != 100000 {
				t.Errorf("owner %d %v", st.Uid, err)
			}
			o := Options{UserNS: os.Stdin, RootUID: 100000, RootGID: 100000}
			err = o.asRoot(func() error { return os.WriteFile(filepath.Join(fdPath(fd), "new"), nil, 0o644) })
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Stat(filepath.Join(r.Upper, "new"), &st); err != nil || st.Uid != 0 {
				t.Errorf("new file in upper: owner %d %v", st.Uid, err)
			}
		})
	}
	if unix.Geteuid() != 0 {
		t.Error("ids are not back")
	}
}

// The main thread would keep the mount namespace for good.
func TestMountSparesMainThread(t *testing.T) {
	r := stack(t, 2, false)
	before, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				if fd, err := r.overlayByMount(Options{}); err != nil {
					t.Error(err)
				} else {
					unix.Close(fd)
				}
			})
		}
		wg.Wait()
		if now, err := os.Readlink("/proc/self/ns/mnt"); err != nil || now != before {
			t.Fatalf("the main thread is in %s instead of %s (%v)", now, before, err)
		}
	}
}
