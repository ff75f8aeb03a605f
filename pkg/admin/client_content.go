package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errhttp"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
)

// Pull pulls an image and calls progress, which may be nil, with how far its layers are.
func (c *Client) Pull(ctx context.Context, ref string, auth *imagestore.Auth, progress func([]imagestore.LayerProgress)) (*Image, error) {
	b, err := json.Marshal(transferRequest{ref, auth})
	if err != nil {
		return nil, err
	}
	resp, err := c.do(ctx, http.MethodPost, "/images/pull", bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	for d := json.NewDecoder(resp.Body); ; {
		var e PullEvent
		if err := d.Decode(&e); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("pull: the server ended before the pull did: %w", errdefs.ErrUnavailable)
		} else if err != nil {
			return nil, fmt.Errorf("pull: %w", err)
		}
		if progress != nil && len(e.Layers) > 0 {
			progress(e.Layers)
		}
		if e.Error != "" {
			return nil, &remoteError{e.Error, errhttp.ToNative(e.Status)}
		}
		if e.Image != nil {
			return e.Image, nil
		}
	}
}

// Push uploads an image to the registry that its name names.
func (c *Client) Push(ctx context.Context, ref string, auth *imagestore.Auth) error {
	return c.post(ctx, "/images/push", transferRequest{ref, auth})
}

// Untag removes one name of an image, and with the last one the image.
func (c *Client) Untag(ctx context.Context, name string) error {
	return c.post(ctx, "/images/untag", tagRequest{Ref: name})
}

// Verify checks the named images, or all; with repair it makes damaged ones whole.
func (c *Client) Verify(ctx context.Context, quick, repair bool, refs ...string) (*imagestore.Report, error) {
	r := &imagestore.Report{}
	return r, c.ask(ctx, "/images/verify", verifyRequest{refs, quick, repair}, r)
}

// Prune removes images without a tag, or with all any, that nothing uses.
func (c *Client) Prune(ctx context.Context, all bool) (imagestore.Pruned, error) {
	var p imagestore.Pruned
	err := c.ask(ctx, "/images/prune", pruneRequest{all}, &p)
	return p, err
}

// DiskUsage tells what each image takes.
func (c *Client) DiskUsage(ctx context.Context) ([]imagestore.ImageUsage, error) {
	var list []imagestore.ImageUsage
	err := c.call(ctx, http.MethodGet, "/images/usage", nil, &list)
	return list, err
}

func (c *Client) ask(ctx context.Context, path string, q, answer any) error {
	b, err := json.Marshal(q)
	if err != nil {
		return err
	}
	return c.call(ctx, http.MethodPost, path, bytes.NewReader(b), answer)
}
