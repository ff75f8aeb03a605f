package images

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Assets are the ingredients of all images.
type Assets struct {
	busybox  []byte
	applets  []string
	testbox  []byte
	libs     []File // the C library and its loader, at the paths the loader looks at
	platform platform
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

// Load reads what `make assets` left in dir: root/ (the unpacked busybox and libc6 packages), applets and testbox.
func Load(dir, arch string) (*Assets, error) {
	a := &Assets{platform: platform{Architecture: arch, OS: "linux"}}
	var err error
	if a.testbox, err = os.ReadFile(filepath.Join(dir, "testbox")); err != nil {
		return nil, fmt.Errorf("image assets (make assets builds them): %w", err)
	}
	applets, err := os.ReadFile(filepath.Join(dir, "applets"))
	if err != nil {
		return nil, fmt.Errorf("image assets (make assets builds them): %w", err)
	}
	a.applets = strings.Fields(string(applets))
	root := filepath.Join(dir, "root")
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		return a.take(path, strings.TrimPrefix(rel, "usr/"), d)
	})
	if err != nil {
		return nil, fmt.Errorf("image assets: %w", err)
	}
	if a.busybox == nil || len(a.libs) < 3 {
		return nil, errors.New("image assets: busybox or its libraries are missing in " + root)
	}
	return a, nil
}

// take keeps a file of the Debian packages if the images need it.
func (a *Assets) take(path, rel string, d fs.DirEntry) error {
	name := filepath.Base(rel)
	switch {
	case rel == "bin/busybox":
		b, err := os.ReadFile(path)
		a.busybox = b
		return err
	case !strings.HasPrefix(rel, "lib"):
		return nil
	case name == "libc.so.6", name == "libresolv.so.2", strings.HasPrefix(name, "ld-linux"):
	default:
		return nil
	}
	if d.Type()&fs.ModeSymlink != 0 {
		to, err := os.Readlink(path)
		a.libs = append(a.libs, File{Path: rel, Link: to})
		return err
	}
	b, err := os.ReadFile(path)
	a.libs = append(a.libs, File{Path: rel, Mode: 0o755, Body: b})
	return err
}

// base is the file system all images start from.
func (a *Assets) base() []File {
	files := []File{
		{Path: "tmp/", Mode: 0o1777}, {Path: "root/", Mode: 0o700}, {Path: "home/", Mode: 0o755},
		{Path: "proc/", Mode: 0o555}, {Path: "sys/", Mode: 0o555}, {Path: "dev/", Mode: 0o755}, {Path: "run/", Mode: 0o755},
		{Path: "var/run/", Mode: 0o755}, {Path: "var/log/", Mode: 0o755}, {Path: "var/tmp/", Mode: 0o1777},
		{Path: "usr/sbin/", Mode: 0o755}, {Path: "sbin/", Mode: 0o755},
		{Path: "etc/passwd", Mode: 0o644, Body: []byte(passwd)},
		{Path: "etc/group", Mode: 0o644, Body: []byte(group)},
		{Path: "bin/busybox", Mode: 0o755, Body: a.busybox},
		{Path: "usr/bin/testbox", Mode: 0o755, Body: a.testbox},
		{Path: "usr/bin/pgrep", Link: "testbox"}, {Path: "usr/bin/ipcs", Link: "testbox"},
	}
	for _, applet := range a.applets {
		if applet != "busybox" && applet != "pgrep" && applet != "ipcs" {
			// Hard links, as in the official image: masking one applet must not mask all.
			files = append(files, File{Path: "bin/" + applet, HardLink: "bin/busybox", Mode: 0o755})
		}
	}
	return append(files, a.libs...)
}

const passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
default-user:x:1000:1000:default user:/home:/bin/sh
nobody:x:65534:65534:nobody:/home:/bin/false
`

const group = `root:x:0:
daemon:x:1:
www-data:x:33:
default-user:x:1000:
group-defined-in-image:x:50000:default-user
nobody:x:65534:
`
