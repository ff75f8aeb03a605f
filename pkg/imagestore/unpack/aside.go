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
	// asideBatch is how many files go aside together: handing over each would cost as much as it gains.
	asideBatch = 16
	// asideWorkers take batches; that many more may wait. Each holds asideBatch descriptors and up to asideBatch × maxAside bytes.
	asideWorkers = 2
)

// small is a file whose name exists; fd is its worker's to close.
type small struct {
	fd   int
	hdr  *tar.Header
	data []byte
}

// workers is the goroutines of one Apply.
type workers struct {
	queue   chan []small
	running sync.WaitGroup
	batch   []small
	buffers sync.Pool

	mu    sync.Mutex
	bytes int64
	err   error
}

// aside reads a file's content and leaves the rest to a worker.
func (a *applier) aside(at place, fd int, hdr *tar.Header) error {
	w := &a.workers
	if w.queue == nil {
		w.queue = make(chan []small, asideWorkers)
		for range asideWorkers {
			w.running.Go(func() { a.work(w) })
		}
	}
	buf, _ := w.buffers.Get().(*[]byte)
	if buf == nil {
		buf = new([]byte)
	}
	data := (*buf)[:0]
	err := a.in.content(hdr.Size, func(b []byte) error {
		data = append(data, b...)
		return nil
	})
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	a.note('f', at.path(), hdr, hdr.Size, crc32.Checksum(data, castagnoli))
	w.batch = append(w.batch, small{fd, hdr, data})
	if len(w.batch) == asideBatch {
		w.queue <- w.batch
		w.batch = nil
	}
	return nil
}

// failed returns the workers' first error so far.
func (w *workers) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (a *applier) work(w *workers) {
	for batch := range w.queue {
		var bytes int64
		var first error
		for _, s := range batch {
			n, err := a.finishSmall(s)
			if err != nil && first == nil {
				first = fmt.Errorf("entry %q: %w", short(s.hdr.Name), err)
			}
			bytes += n
			w.buffers.Put(&s.data)
		}
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
	if len(w.batch) > 0 {
		w.queue <- w.batch
		w.batch = nil
	}
	close(w.queue)
	w.running.Wait()
	w.queue = nil
	return w.bytes, w.err
}
