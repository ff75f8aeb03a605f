package unpack

import (
	"archive/tar"
	"fmt"
	"hash/crc32"
	"sync"

	"golang.org/x/sys/unix"
)

// Small files are most of a layer's entries, and for them writing, describing and closing takes as long as making the
// name. The name is made in the stream's order, for what follows may depend on it; the rest is done aside, by other
// goroutines, through the descriptor.
const (
	// maxAside is the size in bytes of what is called small.
	maxAside = 64 << 10
	// asideBatch and asideBytes are how many files, and bytes of them, go aside together: handing over each would cost as
	// much as it gains.
	asideBatch = 16
	asideBytes = 4 * maxAside
	// asideWorkers take batches; one more may wait.
	asideWorkers = 2
)

// small is a file whose name exists; fd is its worker's to close.
type small struct {
	fd   int
	hdr  *tar.Header
	data []byte
}

// batch is files and the memory that their data lie in.
type batch struct {
	files []small
	slab  []byte
}

// workers is the goroutines of one Apply.
type workers struct {
	queue   chan *batch
	running sync.WaitGroup
	batch   *batch

	mu    sync.Mutex
	bytes int64
	err   error
}

// aside reads a file's content and leaves the rest to a worker.
func (a *applier) aside(at place, fd int, hdr *tar.Header) error {
	w := &a.workers
	if w.queue == nil {
		w.queue = make(chan *batch, 1)
		for range asideWorkers {
			w.running.Go(func() { a.work(w) })
		}
	}
	b := w.batch
	if b != nil && (len(b.files) == asideBatch || len(b.slab)+int(hdr.Size) > asideBytes) {
		w.queue <- b
		b = nil
	}
	if b == nil {
		b = batches.Get().(*batch)
		b.files, b.slab = b.files[:0], b.slab[:0]
		w.batch = b
	}
	start := len(b.slab)
	err := a.in.content(hdr.Size, func(p []byte) error {
		b.slab = append(b.slab, p...)
		return nil
	})
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	data := b.slab[start:]
	a.note('f', at.path(), hdr, hdr.Size, crc32.Checksum(data, castagnoli))
	b.files = append(b.files, small{fd, hdr, data})
	return nil
}

// batches keeps what batches are made of over all Applies.
var batches = sync.Pool{New: func() any { return &batch{slab: make([]byte, 0, asideBytes)} }}

// failed returns the workers' first error so far.
func (w *workers) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (a *applier) work(w *workers) {
	for b := range w.queue {
		var bytes int64
		var first error
		for _, s := range b.files {
			n, err := a.finishSmall(s)
			if err != nil && first == nil {
				first = fmt.Errorf("entry %q: %w", short(s.hdr.Name), err)
			}
			bytes += n
		}
		clear(b.files)
		batches.Put(b)
		w.mu.Lock()
		w.bytes += bytes
		if w.err == nil {
			w.err = first
		}
		w.mu.Unlock()
	}
}

func (a *applier) finishSmall(s small) (n int64, err error) {
	if err = writeAll(s.fd, s.data); err == nil {
		n, err = a.describe(s.fd, s.hdr)
	}
	if cerr := unix.Close(s.fd); err == nil {
		err = cerr
	}
	return n, err
}

// wait ends the workers and returns what they wrote and their first error.
func (w *workers) wait() (int64, error) {
	if w.queue == nil {
		return 0, nil
	}
	if w.batch != nil {
		w.queue <- w.batch
		w.batch = nil
	}
	close(w.queue)
	w.running.Wait()
	w.queue = nil
	return w.bytes, w.err
}
