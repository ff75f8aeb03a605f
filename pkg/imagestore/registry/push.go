package registry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// server is the registry itself: mirrors take no pushes.
func (r *Repository) server() (*hop, error) {
	for _, h := range r.hops {
		if h.Server {
			return h, nil
		}
	}
	return nil, fmt.Errorf("push %s: the registry itself is not among its hosts: %w", r.name, errdefs.ErrFailedPrecondition)
}

// PushBlob uploads a blob in one request, unless the registry has it. open is called for each attempt.
func (r *Repository) PushBlob(ctx context.Context, desc ocispec.Descriptor, open func() (io.ReadCloser, error)) error {
	h, err := r.server()
	if err != nil {
		return err
	}
	stage := fmt.Sprintf("push %s of %s", desc.Digest, r.name)
	have, err := h.has(ctx, "blobs", desc.Digest)
	if err != nil || have {
		return wrap(stage, err)
	}
	u := h.url("blobs", "uploads/")
	resp, err := h.do(ctx, call{method: http.MethodPost, url: u, body: empty})
	if err != nil {
		return wrap(stage, h.fail(err))
	}
	defer drain(resp)
	if resp.StatusCode != http.StatusAccepted {
		return wrap(stage, h.statusError(resp))
	}
	to, err := u.Parse(resp.Header.Get("Location"))
	if err != nil || resp.Header.Get("Location") == "" {
		return wrap(stage, h.fail(fmt.Errorf("the registry names no place for the upload: %w", errdefs.ErrUnavailable)))
	}
	return wrap(stage, h.upload(ctx, to, desc, open))
}

func (h *hop) upload(ctx context.Context, to *url.URL, desc ocispec.Descriptor, open func() (io.ReadCloser, error)) error {
	q := to.Query()
	q.Set("digest", desc.Digest.String())
	to.RawQuery = q.Encode()
	c := call{method: http.MethodPut, url: to, header: http.Header{"Content-Type": {"application/octet-stream"}}, body: open, size: desc.Size}
	send := h.do
	if to.Host != h.url("blobs", "").Host { // credentials are for the registry only
		send = func(ctx context.Context, c call) (*http.Response, error) {
			plain := &hop{Host: Host{}, cfg: h.cfg, http: h.http}
			return plain.send(ctx, c, "")
		}
	}
	resp, err := send(ctx, c)
	if err != nil {
		return h.fail(err)
	}
	defer drain(resp)
	if resp.StatusCode != http.StatusCreated {
		return h.statusError(resp)
	}
	return nil
}

// PushManifest names content that was pushed.
func (r *Repository) PushManifest(ctx context.Context, ref, mediaType string, body []byte) error {
	h, err := r.server()
	if err != nil {
		return err
	}
	resp, err := h.do(ctx, call{
		method: http.MethodPut, url: h.url("manifests", ref), header: http.Header{"Content-Type": {mediaType}}, size: int64(len(body)),
		body: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil },
	})
	stage := "push " + r.name + ":" + ref
	if err != nil {
		return wrap(stage, h.fail(err))
	}
	defer drain(resp)
	if resp.StatusCode != http.StatusCreated {
		return wrap(stage, h.statusError(resp))
	}
	return nil
}

func (h *hop) has(ctx context.Context, kind string, d digest.Digest) (bool, error) {
	resp, err := h.do(ctx, call{method: http.MethodHead, url: h.url(kind, d.String())})
	if err != nil {
		return false, h.fail(err)
	}
	defer drain(resp)
	switch resp.StatusCode {
	case http.StatusOK:
		return true, nil
	case http.StatusNotFound:
		return false, nil
	}
	return false, h.statusError(resp)
}

func empty() (io.ReadCloser, error) { return http.NoBody, nil }

func wrap(stage string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", stage, err)
}
