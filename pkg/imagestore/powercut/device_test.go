package powercut_test

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// event is one thing that happened to the device: a write, a flush, or what the test was doing.
type event struct {
	data   []byte
	offset int64
	flush  bool
	mark   string
}

// device is a file that records. It keeps no more than it was told: a flush is an event, nothing else.
type device struct {
	fs.Inode
	mu     sync.Mutex
	disk   blocks
	record bool
	events []event
}

func (d *device) mark(s string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.events = append(d.events, event{mark: s})
}

func (d *device) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = unix.S_IFREG|0o600, uint64(d.disk.size)
	return 0
}

func (d *device) Setattr(ctx context.Context, f fs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return d.Getattr(ctx, f, out)
}

func (*device) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, 0, 0
}

func (d *device) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return fuse.ReadResultData(dest[:d.disk.read(dest, off)]), 0
}

func (d *device) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if off+int64(len(data)) > d.disk.size {
		return 0, syscall.ENOSPC
	}
	d.disk.write(data, off)
	if d.record {
		d.events = append(d.events, event{data: append([]byte(nil), data...), offset: off})
	}
	return uint32(len(data)), 0
}

func (d *device) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.record {
		d.events = append(d.events, event{flush: true})
	}
	return 0
}

// bench serves devices as files in a directory, and mounts them.
type bench struct {
	dir  string
	root *fs.Inode
	n    int
	fs   string
}

// newBench mounts the FUSE file system that the devices are files of.
func newBench(t *testing.T, fsType string) *bench {
	b := &bench{dir: t.TempDir(), root: &fs.Inode{}, fs: fsType}
	srv, err := fs.Mount(b.dir, b.root, &fs.Options{MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "powercut", MaxWrite: 1 << 20}})
	if err != nil {
		t.Skipf("no FUSE here: %v", err)
	}
	t.Cleanup(func() {
		if err := srv.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// mount mounts a device on a new directory; the result unmounts it.
func (b *bench) mount(t *testing.T, d *device) (mnt string, stop func(), err error) {
	b.n++
	name := fmt.Sprint("disk", b.n) // a new name, for what the kernel knows of another device must not count for this
	b.root.AddChild(name, b.root.NewPersistentInode(context.Background(), d, fs.StableAttr{Mode: unix.S_IFREG}), true)
	mnt = t.TempDir()
	out, err := exec.Command("mount", "-t", b.fs, "-o", "loop", filepath.Join(b.dir, name), mnt).CombinedOutput()
	if err != nil {
		return "", nil, fmt.Errorf("mount: %w: %s", err, out)
	}
	return mnt, sync.OnceFunc(func() {
		command(t, "umount", mnt)
		b.root.RmChild(name)
	}), nil
}

// format makes a file system and returns what the disk holds then.
func format(t *testing.T, fsType string, size int64) blocks {
	t.Helper()
	if _, err := exec.LookPath("mkfs." + fsType); err != nil {
		t.Skipf("mkfs.%s is not installed", fsType)
	}
	img := filepath.Join(t.TempDir(), "first")
	command(t, "truncate", "-s", fmt.Sprint(size), img)
	command(t, "mkfs."+fsType, "-q", img)
	return load(t, img)
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}
