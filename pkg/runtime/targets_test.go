package runtime

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
)

// TestMountTargets: shared mount points are those that nothing but a mount will ever show, whatever the image has.
func TestMountTargets(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	bind := func(at, source string) specs.Mount {
		return specs.Mount{Destination: at, Type: "bind", Source: source}
	}
	fs := func(at, kind string) specs.Mount { return specs.Mount{Destination: at, Type: kind, Source: kind} }
	token := "/run/secrets/kubernetes.io/serviceaccount"
	for name, c := range map[string]struct {
		image  func(root string) error
		mounts []specs.Mount
		userNS bool
		want   []imagestore.Target
	}{
		"the usual": {mounts: []specs.Mount{
			fs("/proc", "proc"), fs("/dev", "tmpfs"), fs("/dev/pts", "devpts"), fs("/sys", "sysfs"), fs("/sys/fs/cgroup", "cgroup"),
			bind("/etc/hosts", file), bind("/dev/shm", dir), bind("/data", dir), bind("/var/run/secrets/kubernetes.io/serviceaccount", dir),
		}, want: []imagestore.Target{
			{Path: "/proc", Dir: true}, {Path: "/dev", Dir: true}, {Path: "/sys", Dir: true}, {Path: "/etc/hosts"}, {Path: "/var" + token, Dir: true},
		}},
		"none in a volume":       {mounts: []specs.Mount{bind("/etc", dir), bind("/etc/hosts", file), bind("/proc", dir)}, want: []imagestore.Target{{Path: "/proc", Dir: true}}},
		"a directory for a file": {mounts: []specs.Mount{bind("/etc/hosts", dir), bind("/dev", file), bind("/etc/hostname", filepath.Join(dir, "gone"))}},
		"a file system at one":   {mounts: []specs.Mount{fs("/etc/hosts", "tmpfs")}},
		"ids are mapped":         {userNS: true, mounts: []specs.Mount{fs("/proc", "proc"), bind("/etc/hosts", file)}},
		"relative link": {image: link("../run", "var/run"), mounts: []specs.Mount{bind("/var"+token, dir)},
			want: []imagestore.Target{{Path: token, Dir: true}}},
		"absolute link": {image: link("/run", "var/run"), mounts: []specs.Mount{bind("/var"+token, dir)},
			want: []imagestore.Target{{Path: token, Dir: true}}},
		"volume behind the link": {image: link("/run", "var/run"), mounts: []specs.Mount{bind("/run", dir), bind("/var"+token, dir)}},
		"volume on the link":     {image: link("/run", "var/run"), mounts: []specs.Mount{bind("/var/run", dir), bind("/var"+token, dir)}},
		"link to elsewhere":      {image: link("/srv", "var/run"), mounts: []specs.Mount{bind("/var"+token, dir)}},
		"link out of the image":  {image: link("../../../../run", "var/run"), mounts: []specs.Mount{bind("/var"+token, dir)}, want: []imagestore.Target{{Path: token, Dir: true}}},
		"link to itself":         {image: link("run", "var/run"), mounts: []specs.Mount{bind("/var"+token, dir)}},
		"var is a link": {image: func(root string) error {
			return firstError(os.MkdirAll(filepath.Join(root, "a/var"), 0o755), os.Symlink("../run", filepath.Join(root, "a/var/run")), os.Symlink("a/var", filepath.Join(root, "var")))
		}, mounts: []specs.Mount{bind("/var"+token, dir)}},
		"var/run is a directory": {image: func(root string) error { return os.MkdirAll(filepath.Join(root, "var/run"), 0o755) },
			mounts: []specs.Mount{bind("/var"+token, dir)}, want: []imagestore.Target{{Path: "/var" + token, Dir: true}}},
	} {
		t.Run(name, func(t *testing.T) {
			image := t.TempDir()
			if c.image != nil {
				if err := c.image(image); err != nil {
					t.Fatal(err)
				}
			}
			root, err := os.OpenRoot(image)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			sp := &specs.Spec{Mounts: c.mounts, Linux: &specs.Linux{}}
			if c.userNS {
				sp.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.UserNamespace}}
			}
			if got := mountTargets(sp, varRun(root)); !slices.Equal(got, c.want) {
				t.Errorf("mount points %v, want %v", got, c.want)
			}
		})
	}
}

func link(to, name string) func(root string) error {
	return func(root string) error {
		return firstError(os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755), os.Symlink(to, filepath.Join(root, name)))
	}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
