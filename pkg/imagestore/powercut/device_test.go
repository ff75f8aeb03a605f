package powercut_test

import (
	"context"
	"os"
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
	disk   []byte
	events []event
}

func (d *device) mark(s string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.events = append(d.events, event{mark: s})
}

func (d *device) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = unix.S_IFREG|0o600, uint64(len(d.disk))
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
	if off >= int64(len(d.disk)) {
		return fuse.ReadResultData(nil), 0
	}
	return fuse.ReadResultData(dest[:copy(dest, d.disk[off:])]), 0
}

func (d *device) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if off+int64(len(data)) > int64(len(d.disk)) {
		return 0, syscall.ENOSPC
	}
	copy(d.disk[off:], data)
	d.events = append(d.events, event{data: append([]byte(nil), data...), offset: off})
	return uint32(len(data)), 0
}

func (d *device) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.events = append(d.events, event{flush: true})
	return 0
}

// record makes an ext4 on a recording device and mounts it; stop unmounts. It returns what the disk held at first.
func record(t *testing.T, size int64) (d *device, mnt string, first []byte, stop func()) {
	t.Helper()
	img := filepath.Join(t.TempDir(), "first")
	command(t, "truncate", "-s", size, img)
	command(t, "mkfs.ext4", "-q", "-F", img)
	first, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	d = &device{disk: append([]byte(nil), first...)}
	served, mnt := t.TempDir(), t.TempDir()
	root := &fs.Inode{}
	srv, err := fs.Mount(served, root, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "powercut", MaxWrite: 1 << 20},
		OnAdd: func(ctx context.Context) {
			root.AddChild("disk", root.NewPersistentInode(ctx, d, fs.StableAttr{Mode: unix.S_IFREG}), true)
		},
	})
	if err != nil {
		t.Skipf("no FUSE here: %v", err)
	}
	if out, err := exec.Command("mount", "-o", "loop", filepath.Join(served, "disk"), mnt).CombinedOutput(); err != nil {
		_ = srv.Unmount()
		t.Skipf("no loop device here: %v: %s", err, out)
	}
	return d, mnt, first, sync.OnceFunc(func() {
		command(t, "umount", mnt)
		if err := srv.Unmount(); err != nil {
			t.Error(err)
		}
	})
}

func command(t *testing.T, name string, args ...any) {
	t.Helper()
	var list []string
	for _, a := range args {
		list = append(list, toString(a))
	}
	if out, err := exec.Command(name, list...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, list, err, out)
	}
}
