package imagestore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore/inflate"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/unpack"
)

// layer makes sure that the layer diffID is unpacked and, unless configured otherwise, its blob is kept.
func (s *Disk) layer(ctx context.Context, src source, d ocispec.Descriptor, diffID digest.Digest) error {
	const tries = 3 // a flight joined may end because of its owner's credentials or source
	var err error
	for range tries {
		if s.haveLayer(d.Digest, diffID) {
			progressOf(ctx).layer(d.Digest, d.Size, func(l *LayerProgress) { l.Present, l.Done = !l.Done && l.Received == 0, true })
			return nil
		}
		var joined bool
		progressOf(ctx).layer(d.Digest, d.Size, func(*LayerProgress) {})
		layerStageOf(ctx).at("wait for its turn, or for another pull that has it")
		_, joined, err = s.layerF.do(ctx, s.life, &s.running, string(d.Digest)+" "+string(diffID), func(ctx context.Context) (struct{}, error) {
			return struct{}{}, s.bringLayer(ctx, src, d, diffID)
		})
		if err == nil {
			progressOf(ctx).layer(d.Digest, d.Size, func(l *LayerProgress) { l.Done, l.Received = true, l.Size })
		}
		if err == nil || !joined || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// haveLayer reports that nothing is left to do for a layer.
func (s *Disk) haveLayer(blob, diffID digest.Digest) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, unpacked := s.layers[diffID]
	_, kept := s.blobs[blob]
	return unpacked && !s.damaged[diffID] && (kept || s.cfg.DiscardUnpackedLayers)
}

// rejecter is a source that has the same content at several places.
type rejecter interface {
	// Reject tells that what was read of a blob was not what its digest names; false if there is no other place.
	Reject(d digest.Digest) bool
}

// bringLayer runs one layer through the pipeline, from another place where the first holds something else.
func (s *Disk) bringLayer(ctx context.Context, src source, d ocispec.Descriptor, diffID digest.Digest) error {
	if err := s.slots.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer s.slots.Release(1)
	defer s.hold(d.Digest, diffID)()
	for {
		if s.haveLayer(d.Digest, diffID) {
			return nil
		}
		local, err := s.tryLayer(ctx, src, d, diffID)
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
		}
		if err == nil || !errdefs.IsDataLoss(err) || ctx.Err() != nil {
			return err
		}
		if local {
			s.log.Error("image store: stored blob damaged, fetching it again", "digest", d.Digest, "error", err)
			if err := s.dropBlob(d.Digest); err != nil {
				return err
			}
			continue
		}
		if r, ok := src.(rejecter); !ok || !r.Reject(d.Digest) {
			return err
		}
		s.log.Warn("image store: a mirror sent wrong content, trying the next", "digest", d.Digest, "error", err)
	}
}

// dropBlob removes a blob that isn't what its name says.
func (s *Disk) dropBlob(d digest.Digest) error {
	s.rename.Lock()
	defer s.rename.Unlock()
	s.mu.Lock()
	if b, ok := s.blobs[d]; ok {
		delete(s.blobs, d)
		s.count(-b.allocated, -1)
	}
	s.mu.Unlock()
	return os.Remove(s.blobPath(d))
}

func (s *Disk) tryLayer(ctx context.Context, src source, d ocispec.Descriptor, diffID digest.Digest) (local bool, err error) {
	if err := step("image.layer.fetch"); err != nil {
		return false, err
	}
	at := layerStageOf(ctx)
	at.at("open")
	body, local, err := s.openLayer(ctx, src, d)
	if err != nil {
		return local, fmt.Errorf("fetch: %w", err)
	}
	defer body.Close()
	at.at("make a directory")
	tmp, err := s.ingestDir()
	if err != nil {
		return local, err
	}
	defer func() { _ = s.remove(tmp) }()

	run := pipeline{desc: d, body: body, dir: filepath.Join(tmp, "layer"), wrote: s.sync.wrote}
	blob := filepath.Join(tmp, "blob")
	if !local && !s.cfg.DiscardUnpackedLayers {
		if l, ok := src.(linker); !ok || l.Link(d.Digest, blob) != nil {
			run.keep = blob
		}
	}
	seen := progressOf(ctx)
	seen.layer(d.Digest, d.Size, func(l *LayerProgress) { l.Received = 0 })
	at.fetching(d.Size)
	run.received = func(n int64) {
		at.add(n, d.Size)
		seen.layer(d.Digest, d.Size, func(l *LayerProgress) { l.Received += n })
	}
	res, err := run.run(ctx, s.unpackOptions())
	if err != nil {
		return local, err
	}
	if run.diffID != diffID {
		return local, fmt.Errorf("check: the layer unpacks to %s, the image's config says %s: %w", run.diffID, diffID, errdefs.ErrDataLoss)
	}
	if res.SkippedDevices > 0 {
		s.log.Warn("image store: device nodes of a layer left out, for want of the right to make them", "layer", d.Digest, "devices", res.SkippedDevices)
	}
	at.at("record")
	l, err := writeLayer(run.dir, diffID, run.files, res)
	if err != nil {
		return local, fmt.Errorf("unpack: %w", err)
	}
	if err := step("image.layer.unpacked"); err != nil {
		return local, err
	}
	// What no image in the table relies on is brought to disk together with the rest of its image. What replaces a part
	// of one must be there first.
	at.at("sync")
	if s.inTable(d.Digest, diffID) {
		if err := s.sync.wait(ctx); err != nil {
			return local, fmt.Errorf("sync: %w", err)
		}
	}
	at.at("store")
	if !local && !s.cfg.DiscardUnpackedLayers {
		if err := s.moveBlobIn(blob, d.Digest); err != nil {
			return local, fmt.Errorf("store blob: %w", err)
		}
	}
	if err := step("image.blob.stored"); err != nil {
		return local, err
	}
	if err := s.moveLayerIn(run.dir, l); err != nil {
		return local, fmt.Errorf("store layer: %w", err)
	}
	return local, step("image.layer.stored")
}

func (s *Disk) unpackOptions() unpack.Options {
	return unpack.Options{
		Limits: s.cfg.Limits.Unpack, Marks: s.driver.Marks(),
		SkipDevices: !capable(unix.CAP_MKNOD), SkipOwner: !capable(unix.CAP_CHOWN),
	}
}

// openLayer opens the blob in the store if it is there, and at its source else.
func (s *Disk) openLayer(ctx context.Context, src source, d ocispec.Descriptor) (rc io.ReadCloser, local bool, err error) {
	s.mu.RLock()
	_, ok := s.blobs[d.Digest]
	s.mu.RUnlock()
	if ok {
		if f, err := os.Open(s.blobPath(d.Digest)); err == nil {
			return f, true, nil
		}
	}
	rc, err = src.Blob(ctx, d)
	return rc, false, err
}

// pipeline is one pass over one layer: receive, check and keep | decompress | check and unpack. Each stage has its
// own goroutine.
type pipeline struct {
	desc ocispec.Descriptor
	body io.Reader
	// dir is made and gets the files in dir/fs; keep, if not empty, is made and gets the blob.
	dir, keep string
	// wrote hears of bytes that go to the disk about now.
	wrote func(n int64)
	// received hears of bytes of the blob.
	received func(n int64)
	// diffID and files are results: the digests of the tar stream and of the manifest dir/files.
	diffID, files digest.Digest
}

func (p *pipeline) run(ctx context.Context, opt unpack.Options) (unpack.Result, error) {
	fs := filepath.Join(p.dir, "fs")
	if err := errors.Join(os.Mkdir(p.dir, 0o700), os.Mkdir(fs, 0o755)); err != nil {
		return unpack.Result{}, err
	}
	root, err := unix.Open(fs, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return unpack.Result{}, err
	}
	defer unix.Close(root)
	if err := unix.Fchmod(root, 0o755); err != nil {
		return unpack.Result{}, err
	}
	manifest, err := os.OpenFile(filepath.Join(p.dir, "files"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return unpack.Result{}, err
	}
	defer manifest.Close() // syncfs brings write errors
	filesSum := sha256.New()
	opt.Manifest = io.MultiWriter(manifest, filesSum)
	received, decompressed, checked := newPipe(), newPipe(), newPipe()
	blob := &pieceReader{from: received}
	fetched := make(chan error, 1)
	go func() {
		err := p.receive(received)
		received.closeWrite(err)
		fetched <- err
	}()
	var stages sync.WaitGroup
	stages.Go(func() { decompressed.closeWrite(decompress(blob, decompressed)) })
	sum := sha256.New()
	stages.Go(func() { checked.closeWrite(p.addTo(sum, decompressed, checked)) })
	res, err := unpack.Apply(ctx, &pieceReader{from: checked}, root, opt)
	checked.closeRead()
	stages.Wait()
	if err != nil && ctx.Err() == nil {
		// Whose fault is it? If the bytes aren't the ones the digest names, the sender's.
		_, _ = io.CopyN(io.Discard, blob, maxBlame)
	}
	received.closeRead()
	if rerr := <-fetched; rerr != nil && !errors.Is(rerr, errReaderGone) {
		return res, fmt.Errorf("fetch: %w", rerr)
	}
	if err != nil {
		return res, fmt.Errorf("unpack: %w", err)
	}
	p.diffID, p.files = digest.NewDigest(digest.SHA256, sum), digest.NewDigest(digest.SHA256, filesSum)
	return res, nil
}

// addTo passes pieces on and adds them to sum.
func (p *pipeline) addTo(sum hash.Hash, in, out *pipe) error {
	defer in.closeRead()
	for {
		c, err := in.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		sum.Write(c.buf[c.from:c.to])
		p.wrote(int64(c.to - c.from))
		if err := out.send(c); err != nil {
			return err
		}
	}
}

// maxBlame is how much of a layer that doesn't unpack is still read to find out whether it is the right one.
const maxBlame = 64 << 20

// receive reads exactly the descriptor's bytes, checks and keeps them.
func (p *pipeline) receive(out *pipe) (err error) {
	sum := sha256.New()
	var keep *os.File
	if p.keep != "" {
		if keep, err = os.OpenFile(p.keep, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, keep.Close()) }()
	}
	for left := p.desc.Size; left > 0; {
		b := newBuffer()
		n, err := io.ReadFull(p.body, b[:min(left, inflate.Chunk)])
		if err == io.EOF || err == io.ErrUnexpectedEOF { // ReadFull's own; one that is wrapped is the source's
			return fmt.Errorf("%d bytes instead of %d: %w", p.desc.Size-left+int64(n), p.desc.Size, errdefs.ErrDataLoss)
		}
		if err != nil {
			return err
		}
		left -= int64(n)
		p.received(int64(n))
		sum.Write(b[:n])
		if keep != nil {
			if _, err := keep.Write(b[:n]); err != nil {
				return err
			}
			p.wrote(int64(n))
		}
		if err := out.send(piece{b, 0, n}); err != nil {
			return err
		}
	}
	var one [1]byte
	if more, err := io.ReadFull(p.body, one[:]); more > 0 {
		return fmt.Errorf("longer than the %d bytes of its descriptor: %w", p.desc.Size, errdefs.ErrDataLoss)
	} else if !errors.Is(err, io.EOF) {
		return err
	}
	if got := digest.NewDigest(digest.SHA256, sum); got != p.desc.Digest {
		return fmt.Errorf("digest is %s instead of %s: %w", got, p.desc.Digest, errdefs.ErrDataLoss)
	}
	return nil
}
