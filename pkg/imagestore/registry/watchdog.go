package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
)

// watched is a response body that ends with ErrUnavailable when the server stops delivering. Only time spent waiting for
// the server counts: a slow disk on our side is not the registry's fault.
type watched struct {
	body   io.ReadCloser
	cancel context.CancelCauseFunc
	host   string
	limit  time.Duration
	least  int64

	timer   *time.Timer
	stalled atomic.Bool

	waited time.Duration // since the window began
	got    int64
}

func newWatched(body io.ReadCloser, cancel context.CancelCauseFunc, h *hop) *watched {
	w := &watched{body: body, cancel: cancel, host: h.Address, limit: h.cfg.StallTimeout, least: h.cfg.StallBytes}
	w.timer = time.AfterFunc(time.Hour, func() {
		w.stalled.Store(true)
		w.cancel(w.error())
	})
	w.timer.Stop()
	return w
}

func (w *watched) error() error {
	return &hopError{host: w.host, retry: true, err: fmt.Errorf("stalled: under %d bytes in %s: %w", w.least, w.limit, errdefs.ErrUnavailable)}
}

// Read implements io.Reader. A window is limit long; one that brought too little is a stall.
func (w *watched) Read(p []byte) (int, error) {
	start := time.Now()
	w.timer.Reset(w.limit - w.waited)
	n, err := w.body.Read(p)
	w.timer.Stop()
	w.waited += time.Since(start)
	w.got += int64(n)
	if w.got >= w.least {
		w.waited, w.got = 0, 0
	}
	if w.stalled.Load() || w.waited >= w.limit && err == nil {
		w.cancel(w.error())
		return n, w.error()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return n, &hopError{host: w.host, retry: true, err: fmt.Errorf("transfer broke: %w: %w", err, errdefs.ErrUnavailable)}
	}
	return n, err
}

// Close implements io.Closer.
func (w *watched) Close() error {
	w.timer.Stop()
	w.cancel(nil)
	return w.body.Close()
}

func isCertError(err error) bool {
	var v *tls.CertificateVerificationError
	return errors.As(err, &v)
}
