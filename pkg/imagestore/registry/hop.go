package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// hop is one Host on behalf of one pull.
type hop struct {
	Host
	cfg        *Config
	http       *http.Client
	repository string
	registry   string
	creds      Credentials
	// trail says which sources of credentials were looked at. owned: those of the node were.
	trail []string
	owned bool

	mu    sync.Mutex
	token string // the Authorization header's value, once a challenge was answered
}

// hopError is what one hop answered.
type hopError struct {
	host string
	err  error
	// retry: another try may go better; after is the server's Retry-After.
	retry bool
	after time.Duration
}

func (e *hopError) Error() string { return e.host + ": " + e.err.Error() }
func (e *hopError) Unwrap() error { return e.err }

func (h *hop) url(kind, ref string) *url.URL {
	u := &url.URL{Scheme: h.Scheme, Host: h.Address, Path: h.Path + "/" + h.repository + "/" + kind + "/" + ref}
	if h.FallbackHTTP {
		u.Scheme = "https"
	}
	if !h.Server { // tells a mirror of several registries which one is meant, as containerd does
		u.RawQuery = url.Values{"ns": {h.registry}}.Encode()
	}
	return u
}

// get asks for one object; header are request headers besides the host's own. The caller closes the body. Any
// status other than 200 and 206 is an error.
func (h *hop) get(ctx context.Context, kind, ref string, header http.Header) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	resp, err := h.authorized(ctx, h.url(kind, ref), header)
	if err != nil {
		cancel(nil)
		return nil, h.fail(err)
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		err := h.statusError(resp)
		var he *hopError
		if errors.As(err, &he) && resp.Request.URL.Host != h.Address {
			he.retry = true // a signed address that has expired, perhaps: the registry gives another
		}
		_ = resp.Body.Close()
		cancel(nil)
		return nil, err
	}
	resp.Body = newWatched(resp.Body, cancel, h)
	return resp, nil
}

func (h *hop) authorized(ctx context.Context, u *url.URL, header http.Header) (*http.Response, error) {
	return h.do(ctx, call{method: http.MethodGet, url: u, header: header})
}

// call is one request; body, if not nil, is opened for each attempt.
type call struct {
	method string
	url    *url.URL
	header http.Header
	body   func() (io.ReadCloser, error)
	size   int64
}

// do sends a call, and once more with an answer to the host's challenge.
func (h *hop) do(ctx context.Context, c call) (*http.Response, error) {
	h.mu.Lock()
	token := h.token
	h.mu.Unlock()
	resp, err := h.send(ctx, c, token)
	if err != nil || resp.StatusCode != http.StatusUnauthorized || resp.Request.URL.Host != c.url.Host {
		return resp, err
	}
	// The challenge of a host that we were redirected to is not for us to answer, hence the last condition.
	challenges := resp.Header.Values("WWW-Authenticate")
	drain(resp)
	fresh, err := h.answer(ctx, challenges, token)
	if err != nil {
		return nil, err
	}
	return h.send(ctx, c, fresh)
}

func (h *hop) send(ctx context.Context, c call, token string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, c.method, c.url.String(), nil)
	if err != nil {
		return nil, err
	}
	if c.body != nil {
		if req.Body, err = c.body(); err != nil {
			return nil, err
		}
		req.ContentLength, req.GetBody = c.size, c.body
	}
	for k, v := range c.header {
		req.Header[k] = v
	}
	for k, v := range h.Header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", h.cfg.UserAgent)
	if token != "" {
		req.Header.Set("Authorization", token)
	}
	return h.http.Do(req)
}

// checkRedirect keeps secrets at the host they are for. net/http itself strips only some headers, and keeps them for
// other ports and subdomains of the host.
func (h *hop) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	if req.URL.Scheme != "https" && via[0].URL.Scheme == "https" && !h.FallbackHTTP {
		return fmt.Errorf("redirected from https to %s://%s: refused", req.URL.Scheme, req.URL.Host)
	}
	away := func(u *url.URL) bool {
		return u.Host != via[0].URL.Host || u.Scheme != via[0].URL.Scheme && !h.FallbackHTTP
	}
	left := away(req.URL)
	for _, v := range via[1:] { // once away it is away, even if the chain comes back
		left = left || away(v.URL)
	}
	if left {
		req.Header.Del("Authorization")
		req.Header.Del("Cookie")
		req.Header.Del("Referer")
		for k := range h.Header {
			req.Header.Del(k)
		}
	}
	return nil
}

// statusError reads the registry's error document, capped.
func (h *hop) statusError(resp *http.Response) error {
	var doc struct {
		Errors errcode.Errors `json:"errors"`
	}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	text := http.StatusText(resp.StatusCode)
	if json.Unmarshal(b, &doc) == nil && len(doc.Errors) > 0 {
		text = clip(doc.Errors.Error(), 512)
	}
	e := &hopError{host: h.Address}
	var kind error = errdefs.ErrUnknown
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		kind = errdefs.ErrPermissionDenied
	case code == http.StatusNotFound:
		kind = errdefs.ErrNotFound
	case code == http.StatusTooManyRequests:
		kind, e.retry, e.after = errdefs.ErrUnavailable, true, retryAfter(resp.Header.Get("Retry-After"))
		text = "too many requests: the registry's rate limit is reached (" + text + ")"
	case code >= 500 || code == http.StatusRequestTimeout:
		kind, e.retry, e.after = errdefs.ErrUnavailable, true, retryAfter(resp.Header.Get("Retry-After"))
	case code == http.StatusRequestedRangeNotSatisfiable:
		kind = errdefs.ErrOutOfRange
	}
	e.err = fmt.Errorf("%s %s: status %d: %s: %w", resp.Request.Method, resp.Request.URL.Redacted(), resp.StatusCode, text, kind)
	return e
}

// fail gives a transport error its kind.
func (h *hop) fail(err error) error {
	var he *hopError
	if errors.As(err, &he) {
		return err
	}
	if kindOf(err) != errdefs.ErrUnknown {
		return &hopError{host: h.Address, err: err}
	}
	e := &hopError{host: h.Address, retry: true}
	var ue *url.Error
	if errors.As(err, &ue) { // its text repeats the URL
		err = ue.Err
	}
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		e.retry = false
	case errors.Is(err, syscall.ECONNREFUSED):
		e.retry = false
	case isCertError(err):
		e.retry = false
	case errors.As(err, &timeout) && timeout.Timeout():
		err = fmt.Errorf("stalled: %w", err)
	}
	e.err = fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	return e
}

// retryAfter reads a Retry-After header: seconds or a date.
func retryAfter(v string) time.Duration {
	if v = strings.TrimSpace(v); v == "" {
		return 0
	}
	if s, err := strconv.Atoi(v); err == nil && s >= 0 {
		return time.Duration(min(s, 86400)) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(t))
	}
	return 0
}

func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	_ = resp.Body.Close()
}

func clip(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

func isKind(err, kind error) bool { return errors.Is(err, kind) }
