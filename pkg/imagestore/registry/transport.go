package registry

import (
	"crypto/tls"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// transports keeps one HTTP transport per TLS configuration, so that connections outlive a pull. The certificate files
// are part of the key by size and time: a changed file makes a new transport at the next pull.
type transports struct {
	mu sync.Mutex
	m  map[uint64]http.RoundTripper
}

// maxTransports bounds the cache against ever-changing certificate files.
const maxTransports = 256

func (t *transports) get(h Host, cfg Config) (http.RoundTripper, error) {
	key := h.key()
	t.mu.Lock()
	tr, ok := t.m[key]
	t.mu.Unlock()
	if ok {
		return tr, nil
	}
	tlsc, err := tlsConfig(h)
	if err != nil {
		return nil, err
	}
	dial := cfg.DialTimeout
	if h.DialTimeout > 0 {
		dial = h.DialTimeout
	}
	var rt http.RoundTripper = &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dial, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       tlsc,
		TLSHandshakeTimeout:   dial,
		ResponseHeaderTimeout: cfg.StallTimeout,
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       30 * time.Second,
		MaxIdleConnsPerHost:   8,
		// Blobs are compressed already, and a transparently decompressed body would not match its digest.
		DisableCompression:     true,
		MaxResponseHeaderBytes: 256 << 10,
		// One HTTP/2 connection would share one TCP window between all layers.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
	if h.FallbackHTTP {
		rt = &fallback{base: rt}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.m) >= maxTransports {
		t.m = nil
	}
	if t.m == nil {
		t.m = map[uint64]http.RoundTripper{}
	}
	t.m[key] = rt
	return rt, nil
}

func (t *transports) closeIdle() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, tr := range t.m {
		(&http.Client{Transport: tr}).CloseIdleConnections()
	}
}

func (h Host) key() uint64 {
	f := fnv.New64a()
	_, _ = fmt.Fprintln(f, h.Scheme, h.Address, h.SkipVerify, h.FallbackHTTP, h.DialTimeout)
	stamp := func(name string) {
		if st, err := os.Stat(name); err == nil {
			_, _ = fmt.Fprintln(f, name, st.Size(), st.ModTime().UnixNano())
		}
	}
	for _, ca := range h.CA {
		stamp(ca)
	}
	for _, c := range h.Client {
		stamp(c[0])
		stamp(c[1])
	}
	return f.Sum64()
}

// fallback asks over https first and over http once the port turned out not to speak TLS.
type fallback struct {
	base  http.RoundTripper
	mu    sync.Mutex
	plain map[string]bool
}

func (f *fallback) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" || !isLoopback(req.URL.Host) {
		return f.base.RoundTrip(req)
	}
	f.mu.Lock()
	plain := f.plain[req.URL.Host]
	f.mu.Unlock()
	if !plain {
		resp, err := f.base.RoundTrip(req)
		var rec tls.RecordHeaderError
		if err == nil || !errors.As(err, &rec) {
			return resp, err
		}
		f.mu.Lock()
		if f.plain == nil {
			f.plain = map[string]bool{}
		}
		f.plain[req.URL.Host] = true
		f.mu.Unlock()
	}
	r := req.Clone(req.Context())
	r.URL.Scheme = "http"
	resp, err := f.base.RoundTrip(r)
	if err == nil {
		resp.Request = req
	}
	return resp, err
}

// CloseIdleConnections is called by http.Client.
func (f *fallback) CloseIdleConnections() { (&http.Client{Transport: f.base}).CloseIdleConnections() }
