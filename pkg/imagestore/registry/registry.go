// Package registry reads images from OCI distribution registries: manifests by tag or digest, blobs as streams.
//
// A registry's host is reached over hops: the mirrors of its certs.d/<host>/hosts.toml (containerd's format, read again
// for each pull) in their order, then the registry itself. A hop that fails for now is tried again after the others;
// one that answers for good (no such image, credentials refused) is not. A broken blob goes on at its offset, on any
// hop: blobs are named by their digest, which the caller checks.
//
// Credentials go to the registry they were given for, over no redirect and to no mirror unless the credentials name
// it. Nothing has a total time limit; what makes no progress ends with ErrUnavailable naming the host.
//
// The requests are made here, and not through oras-go's Repository, because mirrors need other paths (override_path),
// ranged reads over several hosts and a progress watchdog, and because its client refuses token servers on private
// addresses, which is where the ones of private registries are. The error format is oras-go's errcode.
package registry

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Config is fixed for a Client's life. The zero value is usable.
type Config struct {
	// CertsDirs are directories with <host>/hosts.toml; the first that knows a host counts.
	CertsDirs []string
	// RegistriesFiles are in k3s's format and used for hosts that CertsDirs don't know: the first that exists counts.
	// DefaultRegistriesFiles if nil.
	RegistriesFiles []string
	// AuthFiles, in docker's config.json format, have the node's own credentials, for pulls that bring none.
	// DefaultAuthFiles if nil.
	AuthFiles []string
	// StallTimeout ends a transfer that delivers fewer than StallBytes bytes in that time; 60 s and 1 KiB if zero.
	StallTimeout time.Duration
	StallBytes   int64
	// DialTimeout bounds TCP and TLS set-up each; 30 s if zero.
	DialTimeout time.Duration
	// Attempts is how often all hops are tried in turn; 5 if zero. Between two rounds lie Backoff (500 ms if zero), doubled each
	// time, or the server's Retry-After, but never more than MaxBackoff (60 s if zero).
	Attempts            int
	Backoff, MaxBackoff time.Duration
	// UserAgent names us to registries.
	UserAgent string
	Logger    *slog.Logger
}

// Client keeps the connections to registries. Safe for concurrent use.
type Client struct {
	cfg        Config
	transports transports
}

// New makes a client.
func New(cfg Config) *Client {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&cfg.StallTimeout, time.Minute)
	def(&cfg.DialTimeout, 30*time.Second)
	def(&cfg.Backoff, 500*time.Millisecond)
	def(&cfg.MaxBackoff, time.Minute)
	if cfg.RegistriesFiles == nil {
		cfg.RegistriesFiles = DefaultRegistriesFiles
	}
	if cfg.AuthFiles == nil {
		cfg.AuthFiles = DefaultAuthFiles
	}
	if cfg.StallBytes <= 0 {
		cfg.StallBytes = 1 << 10
	}
	if cfg.Attempts <= 0 {
		cfg.Attempts = 5
	}
	if cfg.UserAgent == "" {
		cfg.UserAgent = "cri-server"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Client{cfg: cfg}
}

// Close drops idle connections.
func (c *Client) Close() { c.transports.closeIdle() }

// Repository is one repository as one pull sees it: its hops, credentials and tokens. Safe for concurrent use.
type Repository struct {
	client *Client
	// name is the repository within the registry, "library/busybox".
	name string
	hops []*hop

	mu       sync.Mutex
	last     map[digest.Digest]*hop   // who sent a blob last
	rejected map[digest.Digest][]*hop // who sent something else under its digest
}

// Repository reads the configuration of ref's registry and prepares the hops. Nothing is sent yet.
func (c *Client) Repository(ref reference.Named, creds Credentials) (*Repository, error) {
	host := reference.Domain(ref)
	hosts, err := LoadHosts(c.cfg.CertsDirs, c.cfg.RegistriesFiles, host)
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w", host, err)
	}
	r := &Repository{client: c, name: reference.Path(ref)}
	for _, h := range hosts {
		tr, err := c.transports.get(h, c.cfg)
		if err != nil {
			return nil, fmt.Errorf("registry %s: host %s: %w", host, h.Address, err)
		}
		hp := &hop{Host: h, cfg: &c.cfg, repository: h.repositoryOn(r.name), registry: host}
		if creds.forHost(host, h) {
			hp.creds = creds
			hp.trail = []string{"given with the pull"}
		} else if creds != (Credentials{}) {
			hp.trail = []string{"those given with the pull are for " + serverOr(creds, host)}
		}
		hp.http = &http.Client{Transport: tr, CheckRedirect: hp.checkRedirect}
		r.hops = append(r.hops, hp)
	}
	return r, nil
}

// kindOf finds the errdefs kind of an error, ErrUnknown if it has none.
func kindOf(err error) error {
	for _, k := range []error{
		errdefs.ErrPermissionDenied, errdefs.ErrNotFound, errdefs.ErrUnavailable, errdefs.ErrDataLoss,
		errdefs.ErrInvalidArgument, errdefs.ErrResourceExhausted, errdefs.ErrFailedPrecondition, errdefs.ErrNotImplemented,
	} {
		if isKind(err, k) {
			return k
		}
	}
	return errdefs.ErrUnknown
}

// wait sleeps for d or until ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// serverOr is the host that credentials are for.
func serverOr(c Credentials, registry string) string {
	if s := serverHost(c.ServerAddress); s != "" {
		return s
	}
	return registry
}
