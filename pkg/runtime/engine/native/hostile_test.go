package native

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// images are root file systems that try to lead the engine astray. canary is a directory of the host.
var images = []struct {
	name   string
	make   func(t *testing.T, root, canary string)
	change func(*specs.Spec)
	fails  bool // else the container must start
}{
	{"proc is a link", func(t *testing.T, root, canary string) { relink(t, canary, root+"/proc") }, nil, true},
	{"sys is a link", func(t *testing.T, root, canary string) { relink(t, "/tmp", root+"/sys") }, nil, true},
	{"dev is a link", func(t *testing.T, root, canary string) { relink(t, canary, root+"/dev") }, nil, true},
	{"dev is a link and not mounted", func(t *testing.T, root, canary string) { relink(t, "/tmp", root+"/dev") }, dropMounts("/dev"), true},
	{"proc is a file", func(t *testing.T, root, canary string) { refile(t, root+"/proc") }, nil, true},
	{"mount target leads out", func(t *testing.T, root, canary string) { relink(t, canary, root+"/vol") }, bindTo("/vol/sub"), false},
	{"mount target climbs out", func(t *testing.T, root, canary string) {
		relink(t, "../../../../../../.."+canary, root+"/vol")
	}, bindTo("/vol/sub"), false},
	{"mount target is a loop", func(t *testing.T, root, canary string) { relink(t, "vol", root+"/vol") }, bindTo("/vol"), true},
	{"mount target is a long loop", func(t *testing.T, root, canary string) { relink(t, "vol/x/y", root+"/vol") }, bindTo("/vol"), true},
	{"mount target through proc", func(t *testing.T, root, canary string) { relink(t, "/proc/1/root", root+"/vol") }, bindTo("/vol/etc"), true},
	{"mount target inside of proc", func(t *testing.T, root, canary string) { relink(t, "/proc/sys", root+"/vol") }, bindTo("/vol"), true},
	{"mount target is a file", func(t *testing.T, root, canary string) { refile(t, root+"/vol") }, bindTo("/vol"), true},
	{"console is a link", func(t *testing.T, root, canary string) {
		relink(t, canary+"/console", root+"/dev/console")
	}, func(s *specs.Spec) {
		dropMounts("/dev")(s)
		s.Process.Terminal = true
	}, true},
	{"devices are links", func(t *testing.T, root, canary string) {
		relink(t, canary+"/null", root+"/dev/null")
		relink(t, canary+"/ptmx", root+"/dev/ptmx")
	}, dropMounts("/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"), false},
	{"masked path is a link", func(t *testing.T, root, canary string) { relink(t, canary, root+"/secret") }, func(s *specs.Spec) {
		s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/secret")
	}, false},
	{"working directory leads out", func(t *testing.T, root, canary string) { relink(t, canary, root+"/wd") }, func(s *specs.Spec) {
		s.Process.Cwd = "/wd/sub"
	}, false},
	{"working directory is a descriptor", func(*testing.T, string, string) {}, func(s *specs.Spec) {
		s.Process.Cwd = "/proc/self/fd/3"
	}, true},
	{"pts is no devpts", func(t *testing.T, root, canary string) {
		if err := os.MkdirAll(root+"/dev/pts", 0o755); err != nil {
			t.Fatal(err)
		}
		refile(t, root+"/dev/pts/ptmx")
	}, func(s *specs.Spec) {
		dropMounts("/dev", "/dev/pts", "/dev/shm", "/dev/mqueue")(s)
		s.Process.Terminal = true
	}, true},
}

func relink(t *testing.T, target, path string) {
	t.Helper()
	_ = os.Remove(path)
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func refile(t *testing.T, path string) {
	t.Helper()
	_ = os.Remove(path)
	if err := os.WriteFile(path, []byte("file"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func dropMounts(at ...string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		var kept []specs.Mount
		for _, m := range s.Mounts {
			drop := false
			for _, p := range at {
				drop = drop || m.Destination == p
			}
			if !drop {
				kept = append(kept, m)
			}
		}
		s.Mounts = kept
	}
}

func bindTo(dest string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: dest, Type: "bind", Source: "/usr", Options: []string{"rbind", "ro"}})
	}
}

func TestHostileImage(t *testing.T) {
	b := newBed(t)
	for _, tt := range images {
		t.Run(tt.name, func(t *testing.T) {
			canary := t.TempDir()
			if err := os.WriteFile(filepath.Join(canary, "here"), []byte("host"), 0o644); err != nil {
				t.Fatal(err)
			}
			root := t.TempDir()
			for _, d := range []string{"proc", "sys", "dev", "tmp"} {
				if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			tt.make(t, root, canary)
			spec := newSpec("/bin/sh", "-c", "cat /secret; cat "+canary+"/here; cat /vol/here; cat /wd/here; cat here; exit 0")
			if tt.change != nil {
				tt.change(spec)
			}
			c := b.config(t, spec)
			c.Rootfs.Lower = append([]string{root}, c.Rootfs.Lower...)
			if tt.fails {
				ct, err := b.Create(testContext(t), c)
				if err == nil {
					defer remove(t, ct)
					err = ct.Start(testContext(t))
				}
				if err == nil {
					t.Error("the container started")
				}
				t.Log(err)
			} else if out, _ := b.output(t, c); strings.Contains(out, "host") {
				t.Errorf("the host shows: %s", out)
			}
			entries, err := os.ReadDir(canary)
			if err != nil || len(entries) != 1 {
				t.Errorf("the host's directory has changed: %v %v", entries, err)
			}
		})
	}
}

func TestMountsOverProc(t *testing.T) {
	b := newBed(t)
	file := filepath.Join(t.TempDir(), "cpuinfo")
	if err := os.WriteFile(file, []byte("fake\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for dest, ok := range map[string]bool{"/proc/cpuinfo": true, "/proc/version": false, "/proc/sys/kernel/core_pattern": false} {
		spec := newSpec("/bin/cat", dest)
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: dest, Type: "bind", Source: file, Options: []string{"bind"}})
		if ok {
			if out, _ := b.output(t, b.config(t, spec)); out != "fake\n" {
				t.Errorf("%s: %q", dest, out)
			}
			continue
		}
		if ct, err := b.Create(testContext(t), b.config(t, spec)); !errdefs.IsPermissionDenied(err) {
			t.Errorf("%s: %v", dest, err)
			if err == nil {
				remove(t, ct)
			}
		}
	}
	for _, m := range []specs.Mount{
		{Destination: "/proc", Type: "tmpfs", Source: "tmpfs"},
		{Destination: "/proc", Type: "bind", Source: "/usr", Options: []string{"bind"}},
		{Destination: "/", Type: "bind", Source: "/usr", Options: []string{"bind"}},
		{Destination: "/x/../..", Type: "tmpfs", Source: "tmpfs"},
	} {
		spec := newSpec("/bin/true")
		spec.Mounts = append(spec.Mounts, m)
		if ct, err := b.Create(testContext(t), b.config(t, spec)); err == nil {
			t.Errorf("%+v was mounted", m)
			remove(t, ct)
		}
	}
}
