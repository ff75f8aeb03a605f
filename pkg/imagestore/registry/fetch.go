package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ManifestTypes are the media types that a registry is asked for.
var ManifestTypes = []string{
	ocispec.MediaTypeImageIndex,
	ocispec.MediaTypeImageManifest,
	"application/vnd.docker.distribution.manifest.list.v2+json",
	"application/vnd.docker.distribution.manifest.v2+json",
}

// Manifest fetches a manifest or index by tag or digest, at most limit bytes, and checks it against the digest that was
// asked for or that the registry names.
func (r *Repository) Manifest(ctx context.Context, ref string, limit int64) (ocispec.Descriptor, []byte, error) {
	want, err := digest.Parse(ref)
	byDigest := err == nil
	if !byDigest {
		want = ""
	}
	var desc ocispec.Descriptor
	var body []byte
	err = r.each(ctx, "resolve", !byDigest, nil, func(h *hop) error {
		resp, err := h.get(ctx, "manifests", ref, http.Header{"Accept": {strings.Join(ManifestTypes, ", ")}})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
		if err != nil {
			return h.fail(err)
		}
		if int64(len(b)) > limit {
			return h.fail(fmt.Errorf("manifest is larger than %d bytes: %w", limit, errdefs.ErrResourceExhausted))
		}
		named := want
		if v := resp.Header.Get("Docker-Content-Digest"); !byDigest && v != "" {
			if named, err = digest.Parse(v); err != nil {
				return h.fail(fmt.Errorf("Docker-Content-Digest %q: %w", clip(v, 100), errdefs.ErrDataLoss))
			}
		}
		if named == "" {
			named = digest.FromBytes(b)
		}
		if got := named.Algorithm().FromBytes(b); got != named {
			return &hopError{host: h.Address, retry: true, err: fmt.Errorf("manifest has digest %s instead of %s: %w", got, named, errdefs.ErrDataLoss)}
		}
		mt, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
		if !byDigest { // the store's algorithm, whichever one the registry prefers
			named = digest.FromBytes(b)
		}
		desc, body = ocispec.Descriptor{MediaType: mt, Digest: named, Size: int64(len(b))}, b
		return nil
	})
	return desc, body, err
}

// each runs try on the hops in rounds until one succeeds. resolve asks only hops that may resolve tags.
func (r *Repository) each(ctx context.Context, stage string, resolve bool, usable func(*hop) bool, try func(*hop) error) error {
	var live []*hop
	for _, h := range r.hops {
		if h.Pull && (h.Resolve || !resolve) && (usable == nil || usable(h)) {
			live = append(live, h)
		}
	}
	if len(live) == 0 {
		return fmt.Errorf("%s %s: no host is left that may serve it: %w", stage, r.name, errdefs.ErrFailedPrecondition)
	}
	failed := map[*hop]error{}
	for round := 0; ; round++ {
		var again []*hop
		var after time.Duration
		for _, h := range live {
			err := try(h)
			if err == nil {
				return nil
			}
			if ctx.Err() != nil {
				return fmt.Errorf("%s %s: %w", stage, r.name, context.Cause(ctx))
			}
			failed[h] = err
			var he *hopError
			if errors.As(err, &he) && he.retry {
				again = append(again, h)
				after = max(after, he.after)
			}
		}
		if len(again) == 0 || round+1 >= r.client.cfg.Attempts {
			return r.failure(stage, failed)
		}
		pause := min(max(after, r.client.cfg.Backoff<<round), r.client.cfg.MaxBackoff)
		r.client.cfg.Logger.Debug("registry: trying again", "repository", r.name, "stage", stage, "in", pause, "error", failed[again[0]])
		if err := wait(ctx, pause); err != nil {
			return fmt.Errorf("%s %s: %w", stage, r.name, err)
		}
		live = again
	}
}

// failure names what each hop answered. The kind is the last one's: that is the registry itself.
func (r *Repository) failure(stage string, failed map[*hop]error) error {
	var texts []string
	var kind error = errdefs.ErrUnknown
	for _, h := range r.hops {
		err, ok := failed[h]
		if !ok {
			continue
		}
		texts = append(texts, err.Error())
		kind = kindOf(err)
	}
	return &failureError{text: fmt.Sprintf("%s %s: %s", stage, r.name, strings.Join(texts, "; ")), kind: kind}
}

// failureError carries one kind, whatever kinds the texts in it had.
type failureError struct {
	text string
	kind error
}

func (e *failureError) Error() string { return e.text }
func (e *failureError) Unwrap() error { return e.kind }

// Blob opens a blob as a stream of exactly desc.Size bytes. The stream resumes where a transfer broke. Its content is
// NOT checked against the digest: the caller does, as it reads. URLs of foreign layers are never followed.
func (r *Repository) Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if err := desc.Digest.Validate(); err != nil || desc.Size < 0 {
		return nil, fmt.Errorf("descriptor %q of %d bytes: %w", desc.Digest, desc.Size, errdefs.ErrInvalidArgument)
	}
	b := &blob{ctx: ctx, repo: r, desc: desc}
	if err := b.open(); err != nil {
		return nil, err
	}
	return b, nil
}

// blob is a resumable stream.
type blob struct {
	ctx    context.Context
	repo   *Repository
	desc   ocispec.Descriptor
	body   io.ReadCloser
	offset int64
	// breaks counts interruptions in a row with less than the least that is to come in a while between them; since is the offset
	// after the last time that more came.
	breaks int
	since  int64
}

func (b *blob) open() error {
	return b.repo.each(b.ctx, "fetch "+b.desc.Digest.String()+" of", false, b.repo.trusted(b.desc.Digest), func(h *hop) error {
		header := http.Header{}
		if b.offset > 0 {
			header.Set("Range", fmt.Sprintf("bytes=%d-", b.offset))
		}
		resp, err := h.get(b.ctx, "blobs", b.desc.Digest.String(), header)
		if err != nil {
			return err
		}
		rest := b.desc.Size - b.offset
		skip := int64(0)
		if b.offset > 0 && resp.StatusCode == http.StatusOK { // the server has no ranges: read over what we have
			rest, skip = b.desc.Size, b.offset
		}
		if b.offset == 0 && resp.StatusCode != http.StatusOK || resp.ContentLength >= 0 && resp.ContentLength != rest {
			_ = resp.Body.Close()
			return h.fail(fmt.Errorf("blob %s has %d bytes to send, the manifest says %d: %w", b.desc.Digest, resp.ContentLength, rest, errdefs.ErrDataLoss))
		}
		if skip > 0 {
			if _, err := io.CopyN(io.Discard, resp.Body, skip); err != nil {
				_ = resp.Body.Close()
				return h.fail(err)
			}
		}
		b.body = resp.Body
		b.repo.served(b.desc.Digest, h)
		return nil
	})
}

// maxBreaks is how often a transfer may break without having moved.
const maxBreaks = 5

// Read implements io.Reader.
func (b *blob) Read(p []byte) (int, error) {
	for {
		if b.offset == b.desc.Size {
			return b.end()
		}
		n, err := b.body.Read(p[:min(int64(len(p)), b.desc.Size-b.offset)])
		b.offset += int64(n)
		if b.offset-b.since >= b.repo.client.cfg.StallBytes {
			b.breaks, b.since = 0, b.offset
		}
		if n > 0 {
			return n, nil // an error comes again
		}
		if err == nil {
			continue
		}
		if b.ctx.Err() != nil {
			return 0, context.Cause(b.ctx)
		}
		if b.breaks++; b.breaks > maxBreaks {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("blob %s ends after %d of %d bytes: %w", b.desc.Digest, b.offset, b.desc.Size, errdefs.ErrDataLoss)
			}
			return 0, err
		}
		_ = b.body.Close()
		b.repo.client.cfg.Logger.Debug("registry: resuming a blob", "digest", b.desc.Digest, "offset", b.offset, "error", err)
		if err := b.open(); err != nil {
			return 0, err
		}
	}
}

// end makes sure that the server has no more to say: a blob longer than its descriptor is refused.
func (b *blob) end() (int, error) {
	var one [1]byte
	if n, _ := io.ReadFull(b.body, one[:]); n > 0 {
		return 0, fmt.Errorf("blob %s is longer than the %d bytes of its descriptor: %w", b.desc.Digest, b.desc.Size, errdefs.ErrDataLoss)
	}
	return 0, io.EOF
}

// Close implements io.Closer.
func (b *blob) Close() error { return b.body.Close() }

// Reject tells that a blob's content was not what its digest names. The hop that sent it last is not asked for this blob
// again. It returns false if that leaves none.
func (r *Repository) Reject(d digest.Digest) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.last[d]
	if h == nil {
		return false
	}
	if r.rejected == nil {
		r.rejected = map[digest.Digest][]*hop{}
	}
	r.rejected[d] = append(r.rejected[d], h)
	for _, o := range r.hops {
		if o.Pull && !slices.Contains(r.rejected[d], o) {
			return true
		}
	}
	return false
}

func (r *Repository) served(d digest.Digest, h *hop) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		r.last = map[digest.Digest]*hop{}
	}
	r.last[d] = h
}

func (r *Repository) trusted(d digest.Digest) func(*hop) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	bad := slices.Clone(r.rejected[d])
	return func(h *hop) bool { return !slices.Contains(bad, h) }
}
