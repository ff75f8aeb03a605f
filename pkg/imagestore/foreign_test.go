package imagestore_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/imagetest"
	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
)

const aarch64 = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: F\noffset 0\n" +
	"magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n"

// armImage is a program for arm64 that says hello.
func armImage() imagetest.Image {
	return imagetest.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "arm64"},
		Layers:   []imagetest.Layer{imagetest.Files(map[string]imagetest.File{"hello": {Content: armHello(), Mode: 0o755}})},
	}
}

// armHello is an ELF file with write(1, text, n) and exit(0) for arm64.
func armHello() []byte {
	const text, base, head = "hello from arm64\n", 0x400000, 64 + 56
	code := []uint32{
		0xd2800020,                         // mov x0, #1
		0x10000001 | 7<<5,                  // adr x1, the text, 7 instructions on
		0xd2800002 | uint32(len(text))<<5,  // mov x2, #n
		0xd2800808, 0xd4000001, 0xd2800000, // mov x8, #write; svc; mov x0, #0
		0xd2800ba8, 0xd4000001, // mov x8, #exit; svc
	}
	var b bytes.Buffer
	size := uint64(head + 4*len(code) + len(text))
	b.WriteString("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9))
	for _, v := range []any{
		uint16(2), uint16(183), uint32(1), uint64(base + head), uint64(64), uint64(0), uint32(0), uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0),
		uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), size, size, uint64(0x1000), code, []byte(text),
	} {
		_ = binary.Write(&b, binary.LittleEndian, v)
	}
	return b.Bytes()
}

// TestForeignPlatform pulls for a processor that is not this node's, with and without an interpreter.
func TestForeignPlatform(t *testing.T) {
	testns.Root(t)
	srv := serve(t)
	srv.Put("img", "index", imagetest.Index(armImage()))
	srv.Put("img", "arm", armImage().Build())
	srv.Put("img", "both", imagetest.Index(armImage(), small("amd64")))
	cfg := config(t, t.TempDir())
	cfg.BinfmtDir = t.TempDir()
	s := open(t, cfg)
	for tag, kind := range map[string]func(error) bool{"index": errdefs.IsNotFound, "arm": errdefs.IsFailedPrecondition} {
		_, err := s.Pull(t.Context(), srv.Host+"/img:"+tag, nil)
		if !kind(err) || !strings.Contains(err.Error(), "arm64") || !strings.Contains(err.Error(), "binfmt_misc") {
			t.Errorf("%s without an interpreter: %v", tag, err)
		}
	}
	for name, text := range map[string]string{"status": "enabled\n", "qemu-aarch64": aarch64} {
		if err := os.WriteFile(filepath.Join(cfg.BinfmtDir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if img := pull(t, s, srv.Host+"/img:both"); img.Config.Architecture != "amd64" {
		t.Errorf("an image of the node's own platform was there, and %s was taken", img.Config.Architecture)
	}
	img := pull(t, s, srv.Host+"/img:index")
	if img.Config.Architecture != "arm64" {
		t.Errorf("architecture %s", img.Config.Architecture)
	}
	if _, err := s.Snapshot(t.Context(), "c1", img.ID); err != nil {
		t.Error(err)
	}
	// The interpreter goes: what is there stays listed, and new containers are refused.
	if err := os.Remove(filepath.Join(cfg.BinfmtDir, "qemu-aarch64")); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	s = open(t, cfg)
	if n := len(s.List()); n != 2 {
		t.Errorf("%d images", n)
	}
	_, err := s.Snapshot(t.Context(), "c2", img.ID)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "linux/arm64") || !strings.Contains(err.Error(), "qemu-user-static") {
		t.Errorf("snapshot without the interpreter: %v", err)
	}
}

const foreignEnv = "IMAGESTORE_TEST_FOREIGN"

// TestForeignChild pulls and runs an image for arm64 in a user namespace that has a binfmt_misc of its own (Linux 6.7).
func TestForeignChild(t *testing.T) {
	root, ref, _ := strings.Cut(os.Getenv(foreignEnv), "|")
	if root == "" {
		t.Skip("only as a child of TestForeignRuns")
	}
	qemu, err := exec.LookPath("qemu-aarch64-static")
	if err != nil {
		t.Fatal(err)
	}
	const dir = "/proc/sys/fs/binfmt_misc"
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("binfmt_misc", dir, "binfmt_misc", 0, ""); err != nil {
		t.Skip("no binfmt_misc in a user namespace (Linux 6.7):", err)
	}
	format := `:qemu-aarch64:M:0:\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:` +
		`\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:` + qemu + ":F"
	if err := os.WriteFile(dir+"/register", []byte(format), 0); err != nil {
		t.Fatal(err)
	}
	s := open(t, config(t, root))
	img, err := s.Pull(context.Background(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Snapshot(context.Background(), "c1", img.ID)
	if err != nil {
		t.Fatal(err)
	}
	mnt := t.TempDir()
	if err := r.MountAt(mnt, rootfs.Options{}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) }()
	c := exec.Command("/hello")
	c.Dir, c.SysProcAttr = "/", &syscall.SysProcAttr{Chroot: mnt}
	out, err := c.CombinedOutput()
	if err != nil || string(out) != "hello from arm64\n" {
		t.Errorf("%q, %v", out, err)
	}
	if err := imagestore.Store(s).RemoveSnapshot(context.Background(), "c1"); err != nil {
		t.Error(err)
	}
}

// TestForeignRuns runs an arm64 image by qemu-user, without a change to the machine's own binfmt_misc.
func TestForeignRuns(t *testing.T) {
	testns.Root(t)
	if runtime.GOARCH != "amd64" {
		t.Skip("the test's image is foreign to amd64 only")
	}
	if _, err := exec.LookPath("qemu-aarch64-static"); err != nil {
		t.Skip("qemu-aarch64-static is not there (make assets fetches it)")
	}
	srv := serve(t)
	srv.Put("img", "v1", imagetest.Index(armImage()))
	base := t.TempDir()
	c := exec.Command("/proc/self/exe", "-test.run=^TestForeignChild$", "-test.v")
	c.Env = append(os.Environ(), foreignEnv+"="+filepath.Join(base, "store")+"|"+srv.Host+"/img:v1")
	one := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65536}}
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID, UidMappings: one, GidMappings: one, Pdeathsig: syscall.SIGKILL,
	}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(string(out), "SKIP") {
		t.Skipf("%s", out)
	}
}
