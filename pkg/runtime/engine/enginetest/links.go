package enginetest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// An image is hostile: its links point where they like, and must never lead a mount, a device or a mask to the host.
var linkTests = []test{
	{"links/mount target", nil, linksStayInside},
	{"links/file target", nil, fileOnLink},
	{"links/proc, sys and dev", nil, systemOnLink},
	{"links/masked and read-only", nil, maskedLink},
	{"links/device", nil, deviceOnLink},
	{"links/cwd", nil, cwdLink},
}

// plant puts a link into the writable layer in place of whatever the image has there.
func (b *box) plant(name, to string) {
	b.t.Helper()
	path := filepath.Join(b.dir, "upper", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Symlink(to, path); err != nil {
		b.t.Fatal(err)
	}
}

// untouched checks that a directory made by hostDir is as it was, and nothing is mounted in it.
func untouched(t *testing.T, host, when string) {
	t.Helper()
	entries, err := os.ReadDir(host)
	if err != nil || len(entries) != 1 || entries[0].Name() != "file" {
		t.Errorf("%s: the host's directory has %v %v", when, entries, err)
	}
	equal(t, when+": the host's file", read(t, host+"/file"), "host")
	for _, m := range mountsOf(t, os.Getpid()) {
		if strings.HasPrefix(m.point, host) {
			t.Errorf("%s: %s is mounted on the host's %s", when, m.fstype, m.point)
		}
	}
}

// linksStayInside: absolute and climbing links in the image are resolved against the container's root.
func linksStayInside(t *testing.T, s *suite) {
	host := s.hostDir(t)
	for name, link := range map[string]string{
		"absolute": host, "climbing": "../../../../../../../../.." + host, "in the middle": host + "/deeper",
	} {
		b := s.box(t, s.spec("touch /link/sub/made && ls "+host+"*/sub "+host+"/deeper/sub 2>/dev/null; echo ready; cat", withMount(specs.Mount{
			Destination: "/link/sub", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=64k"},
		})))
		b.plant("link", link)
		err := b.launch() // a link to nowhere may be refused
		if err == nil {
			b.ready("ready")
			contains(t, name+": inside", b.out.String(), "made")
			b.finish()
		}
		untouched(t, host, name)
	}
}

func fileOnLink(t *testing.T, s *suite) {
	host, other := s.hostDir(t), s.hostDir(t)
	for name, to := range map[string]string{"to a file": host + "/file", "to nothing": host + "/none", "climbing": "../../../../../.." + host + "/file"} {
		b := s.box(t, s.spec("cat /etc/resolv.conf; echo changed > /etc/resolv.conf; echo ready; cat >/dev/null", bind(other+"/file", "/etc/resolv.conf")))
		b.plant("etc/resolv.conf", to)
		if b.launch() == nil { // a link to nowhere may be refused
			b.ready("ready")
			b.finish()
		}
		untouched(t, host, name)
	}
}

// systemOnLink: refusing is as good as mounting inside.
func systemOnLink(t *testing.T, s *suite) {
	for _, dir := range []string{"proc", "sys", "dev"} {
		host := s.hostDir(t)
		b := s.box(t, s.spec("true"))
		b.plant(dir, host)
		if b.launch() == nil {
			b.code()
		}
		untouched(t, host, dir)
	}
}

func maskedLink(t *testing.T, s *suite) {
	host := s.hostDir(t)
	b := s.box(t, s.spec("true", func(c *specs.Spec) {
		c.Linux.MaskedPaths, c.Linux.ReadonlyPaths = []string{"/evil/file", "/evil"}, []string{"/bad/file", "/bad"}
	}))
	b.plant("evil", host)
	b.plant("bad", host)
	if b.launch() == nil {
		b.code()
	}
	untouched(t, host, "masked")
}

func deviceOnLink(t *testing.T, s *suite) {
	host := s.hostDir(t)
	b := s.box(t, s.spec("true", func(c *specs.Spec) {
		c.Linux.Devices = []specs.LinuxDevice{{Path: "/evil/null", Type: "c", Major: 1, Minor: 3}}
	}))
	b.plant("evil", host)
	if b.launch() == nil {
		b.code()
	}
	untouched(t, host, "device")
}

func cwdLink(t *testing.T, s *suite) {
	host := s.hostDir(t)
	b := s.box(t, s.spec("touch made; true", func(c *specs.Spec) { c.Process.Cwd = "/evil/new" }))
	b.plant("evil", host)
	if b.launch() == nil {
		b.code()
	}
	untouched(t, host, "cwd")
}
