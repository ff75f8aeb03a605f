package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hangFS is a file system in user space (fuse(4)) that keeps directories and the sizes of files in memory, and at some
// point answers nothing any more, as a network file system whose server has gone does. What then asks for something waits,
// and can't be killed, until the connection is aborted.
type hangFS struct {
	dev *os.File

	mu      sync.Mutex
	hanging bool
	noFlush bool // a descriptor's end does not wait for it
	held    int  // requests that were left without an answer
	nodes   []*hangNode
}

// hangNode is a file or directory; its number is its place in hangFS.nodes.
type hangNode struct {
	entries map[string]uint64
	size    uint64
}

const hangRoot = 1

// newHangFS mounts one at dir.
func newHangFS(t *testing.T, dir string) *hangFS {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("no FUSE: %v", err)
	}
	if err := unix.Mount("hang", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40755,user_id=0,group_id=0,allow_other", fd)); err != nil {
		unix.Close(fd)
		t.Fatalf("mount: %v", err)
	}
	// Only now, since Go's poller would never hear of a descriptor that had no connection when it got it.
	h := &hangFS{dev: os.NewFile(uintptr(fd), "/dev/fuse"), nodes: []*hangNode{nil, {entries: map[string]uint64{}}}}
	done := make(chan struct{})
	go func() { defer close(done); h.serve() }()
	t.Cleanup(func() {
		h.abort()
		<-done
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && err != unix.EINVAL { // the test may have done it
			t.Errorf("unmount: %v", err)
		}
	})
	return h
}

// hang leaves all that is asked from now on without an answer.
func (h *hangFS) hang() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hanging = true
}

// deafen leaves all that is asked from now on unread: what waits for it can be killed, as with most network file systems,
// if noFlush is set from the beginning.
func (h *hangFS) deafen() {
	_ = h.dev.SetReadDeadline(time.Unix(1, 0))
}

// waiting tells how many requests are without an answer.
func (h *hangFS) waiting() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held
}

// abort ends the connection: what waits gets an error (ECONNABORTED), and so does all that comes.
func (h *hangFS) abort() { h.dev.Close() }

// Opcodes of linux/fuse.h, protocol 7.31.
const (
	fuseLookup, fuseForget, fuseGetattr, fuseSetattr        = 1, 2, 3, 4
	fuseMkdir, fuseUnlink, fuseRmdir, fuseOpen              = 9, 10, 11, 14
	fuseRename, fuseRename2                                 = 12, 45
	fuseRead, fuseWrite, fuseStatfs, fuseRelease            = 15, 16, 17, 18
	fuseFlush, fuseInit, fuseOpendir, fuseReaddir           = 25, 26, 27, 28
	fuseReleasedir, fuseCreate, fuseInterrupt, fuseForgetMs = 29, 35, 36, 42
)

func (h *hangFS) serve() {
	buf := make([]byte, 1<<20)
	for {
		n, err := h.dev.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return // until the connection is aborted
		}
		if errors.Is(err, unix.ENOENT) { // a request that was taken back while it was read
			continue
		}
		if err != nil || n < 40 {
			return
		}
		le := binary.LittleEndian
		op, unique, node := le.Uint32(buf[4:]), le.Uint64(buf[8:]), le.Uint64(buf[16:])
		if op == fuseForget || op == fuseForgetMs || op == fuseInterrupt {
			continue
		}
		h.mu.Lock()
		var answer []byte
		errno := unix.Errno(0)
		hold := h.hanging
		if hold {
			h.held++
		} else {
			answer, errno = h.answer(op, node, buf[40:n])
		}
		h.mu.Unlock()
		if hold {
			continue
		}
		out := make([]byte, 16, 16+len(answer))
		le.PutUint32(out, uint32(16+len(answer)))
		le.PutUint32(out[4:], uint32(-int32(errno)))
		le.PutUint64(out[8:], unique)
		if _, err := h.dev.Write(append(out, answer...)); err != nil && !errors.Is(err, unix.ENOENT) {
			return
		}
	}
}

func (h *hangFS) answer(op uint32, id uint64, in []byte) ([]byte, unix.Errno) {
	le := binary.LittleEndian
	if id >= uint64(len(h.nodes)) {
		id = hangRoot
	}
	switch op {
	case fuseInit:
		out := make([]byte, 64)
		le.PutUint32(out, 7)
		le.PutUint32(out[4:], 31)
		le.PutUint32(out[20:], 1<<17) // max_write
		return out, 0
	case fuseLookup:
		child, ok := h.nodes[id].entries[name(in)]
		if !ok {
			return nil, unix.ENOENT
		}
		return h.entry(child), 0
	case fuseGetattr, fuseSetattr:
		return append(make([]byte, 16), h.attr(id)...), 0
	case fuseMkdir:
		return h.entry(h.add(id, name(in[8:]), map[string]uint64{})), 0
	case fuseCreate:
		return append(h.entry(h.add(id, name(in[16:]), nil)), make([]byte, 16)...), 0
	case fuseUnlink, fuseRmdir:
		delete(h.nodes[id].entries, name(in))
		return nil, 0
	case fuseRename, fuseRename2:
		names := in[8:]
		if op == fuseRename2 {
			names = in[16:]
		}
		from, to := name(names), name(names[len(name(names))+1:])
		if parent := le.Uint64(in); parent < uint64(len(h.nodes)) {
			h.nodes[parent].entries[to] = h.nodes[id].entries[from]
			delete(h.nodes[id].entries, from)
		}
		return nil, 0
	case fuseOpen, fuseOpendir:
		return make([]byte, 16), 0
	case fuseFlush:
		if h.noFlush {
			return nil, unix.ENOSYS // and is asked no more
		}
		return nil, 0
	case fuseRead, fuseReaddir, fuseRelease, fuseReleasedir:
		return nil, 0
	case fuseWrite:
		size := le.Uint32(in[16:])
		h.nodes[id].size = max(h.nodes[id].size, le.Uint64(in[8:])+uint64(size))
		out := make([]byte, 8)
		le.PutUint32(out, size)
		return out, 0
	case fuseStatfs:
		return make([]byte, 80), 0
	}
	return nil, unix.ENOSYS
}

func name(in []byte) string { return string(in[:max(0, bytes.IndexByte(in, 0))]) }

func (h *hangFS) add(parent uint64, name string, entries map[string]uint64) uint64 {
	h.nodes = append(h.nodes, &hangNode{entries: entries})
	id := uint64(len(h.nodes) - 1)
	h.nodes[parent].entries[name] = id
	return id
}

// entry is a struct fuse_entry_out that may not be cached.
func (h *hangFS) entry(id uint64) []byte {
	return append(binary.LittleEndian.AppendUint64(nil, id), append(make([]byte, 32), h.attr(id)...)...)
}

// attr is a struct fuse_attr.
func (h *hangFS) attr(id uint64) []byte {
	le := binary.LittleEndian
	out := make([]byte, 88)
	le.PutUint64(out, id)
	le.PutUint64(out[8:], h.nodes[id].size)
	mode := uint32(unix.S_IFREG | 0o644)
	if h.nodes[id].entries != nil {
		mode = unix.S_IFDIR | 0o755
	}
	le.PutUint32(out[60:], mode)
	le.PutUint32(out[64:], 1)
	return out
}
