package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errhttp"

	"github.com/seed-9a14075a/cri-server/pkg/operation"
)

// Client speaks to a server's admin socket. Close it after use.
type Client struct {
	socket string
	http   http.Client
	t      *http.Transport
}

// NewClient makes a client; it connects with its first call.
func NewClient(socket string) *Client {
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}
	return &Client{socket: socket, t: t, http: http.Client{Transport: t}}
}

// Close lets go of idle connections.
func (c *Client) Close() { c.t.CloseIdleConnections() }

// Import stores the images of an archive. With packed their layers are unpacked by the first container only.
func (c *Client) Import(ctx context.Context, archive io.Reader, packed bool) ([]Image, error) {
	var list []Image
	err := c.call(ctx, http.MethodPost, fmt.Sprintf("/images/import?packed=%t", packed), archive, &list)
	return list, err
}

// Export writes an archive of the named images.
func (c *Client) Export(ctx context.Context, w io.Writer, refs ...string) error {
	resp, err := c.do(ctx, http.MethodGet, "/images/export?"+url.Values{"ref": refs}.Encode(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	if msg := resp.Trailer.Get(errorTrailer); msg != "" {
		return fmt.Errorf("export: the archive is not complete: %s", msg)
	}
	return nil
}

// Tag gives an image a further name.
func (c *Client) Tag(ctx context.Context, ref, name string) error {
	return c.post(ctx, "/images/tag", tagRequest{ref, name})
}

// Pin keeps an image from garbage collection, or no longer.
func (c *Client) Pin(ctx context.Context, ref string, pinned bool) error {
	return c.post(ctx, "/images/pin", pinRequest{ref, pinned})
}

// Operations are those that run.
func (c *Client) Operations(ctx context.Context) ([]operation.Timeline, error) {
	var list []operation.Timeline
	err := c.call(ctx, http.MethodGet, "/operations", nil, &list)
	return list, err
}

// Collect takes down what no record stands for, or with dry only tells what that is.
func (c *Client) Collect(ctx context.Context, dry bool) (Collected, error) {
	var found Collected
	err := c.ask(ctx, "/gc", gcRequest{dry}, &found)
	return found, err
}

func (c *Client) post(ctx context.Context, path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.call(ctx, http.MethodPost, path, bytes.NewReader(b), nil)
}

func (c *Client) call(ctx context.Context, method, path string, body io.Reader, v any) error {
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if v == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// do sends a request and turns a failure that the server tells into an error. The caller closes the body.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://cri-server"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%s: %w: %w", c.socket, err, errdefs.ErrUnavailable)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	var f failure
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxRequest)).Decode(&f); err != nil || f.Error == "" {
		f.Error = resp.Status
	}
	return nil, &remoteError{f.Error, errhttp.ToNative(resp.StatusCode)}
}

// remoteError is an error of the server, in its words and of its kind.
type remoteError struct {
	text string
	kind error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.kind }
