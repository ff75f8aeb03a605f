package registry

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/distribution/reference"
)

// Probe is how one hop of a registry answers.
type Probe struct {
	// Host is the address with its scheme and path; Role is "mirror" or "registry"; From the file that configures it.
	Host string `json:"host"`
	Role string `json:"role"`
	From string `json:"from,omitempty"`
	// May is what the hop is used for: "pull", "resolve"; a hop that may not resolve is not asked for tags.
	May []string `json:"may"`
	// TLS says how the host's certificate is checked.
	TLS string `json:"tls"`
	// Ping is the answer to the API's root, Challenge the credentials that it wants.
	Ping      string `json:"ping"`
	Challenge string `json:"challenge,omitempty"`
	// Credentials are the sources that were looked at, in order, the last one being that in use if any is.
	Credentials []string `json:"credentials,omitempty"`
	// Image is the answer for the image that was asked for, empty for a host only.
	Image string `json:"image,omitempty"`
	// Error is why a pull would go on to the next hop, empty if it would not.
	Error string        `json:"error,omitempty"`
	Took  time.Duration `json:"took"`
}

// Probe asks every hop that a pull of ref would try, in their order and each once. With image false only the hosts are
// asked, not for ref.
func (c *Client) Probe(ctx context.Context, ref reference.Named, creds Credentials, image bool) ([]Probe, error) {
	repo, err := c.Repository(ref, creds)
	if err != nil {
		return nil, err
	}
	object := "latest"
	switch r := ref.(type) {
	case reference.Digested:
		object = r.Digest().String()
	case reference.Tagged:
		object = r.Tag()
	}
	var out []Probe
	for _, h := range repo.hops {
		start := time.Now()
		p := h.describe()
		if err := h.ping(ctx, &p); err != nil {
			p.Error = err.Error()
		} else if image {
			if err := h.look(ctx, &p, object); err != nil {
				p.Error = err.Error()
			}
		}
		p.Credentials = h.trail
		p.Took = time.Since(start)
		out = append(out, p)
	}
	return out, nil
}

func (h *hop) describe() Probe {
	p := Probe{Host: h.Scheme + "://" + h.Address + h.Path, Role: "mirror", From: h.From, May: []string{}, TLS: "none: plain http"}
	if h.Server {
		p.Role = "registry"
	}
	if h.Pull {
		p.May = append(p.May, "pull")
	}
	if h.Resolve {
		p.May = append(p.May, "resolve")
	}
	switch {
	case h.FallbackHTTP:
		p.TLS = "not checked, or plain http where the port speaks no TLS (loopback)"
	case h.Scheme == "https" && h.SkipVerify:
		p.TLS = "certificate not checked"
	case h.Scheme == "https" && len(h.CA) > 0:
		p.TLS = "certificate checked with " + strings.Join(h.CA, ", ")
	case h.Scheme == "https":
		p.TLS = "certificate checked with the system's CAs"
	}
	if len(h.Client) > 0 {
		p.TLS += "; client certificate " + h.Client[0][0]
	}
	return p
}

// ping asks for the API's root, which tells how to authenticate.
func (h *hop) ping(ctx context.Context, p *Probe) error {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.StallTimeout)
	defer cancel()
	u := h.url("", "")
	u.Path = h.Path + "/"
	resp, err := h.send(ctx, call{method: http.MethodGet, url: u}, "")
	if err != nil {
		return h.fail(err)
	}
	defer drain(resp)
	p.Ping = resp.Status
	if resp.StatusCode == http.StatusUnauthorized {
		p.Challenge = clip(resp.Header.Get("WWW-Authenticate"), 512)
		h.findOwn(ctx)
	}
	if resp.StatusCode >= 500 {
		return h.statusError(resp)
	}
	return nil
}

// look asks for the image's manifest as a pull does.
func (h *hop) look(ctx context.Context, p *Probe, object string) error {
	if !h.Pull || !h.Resolve && !strings.Contains(object, ":") {
		return fmt.Errorf("not asked: it may not %s", map[bool]string{true: "resolve tags", false: "serve pulls"}[h.Pull])
	}
	resp, err := h.get(ctx, "manifests", object, http.Header{"Accept": {strings.Join(ManifestTypes, ", ")}})
	if err != nil {
		return err
	}
	defer drain(resp)
	p.Image = resp.Header.Get("Content-Type")
	if d := resp.Header.Get("Docker-Content-Digest"); d != "" {
		p.Image += " " + clip(d, 100)
	}
	return nil
}
