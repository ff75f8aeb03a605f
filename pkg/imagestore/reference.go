package imagestore

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// maxReference is above any legal reference: name 255, tag 128, digest with its algorithm.
const maxReference = 1024

// parseName reads a reference as docker does: docker.io and library/ are implied, as is :latest where there is neither
// tag nor digest. A tag beside a digest is dropped: the digest says what is meant.
func parseName(ref string) (reference.Named, error) {
	if len(ref) > maxReference {
		return nil, fmt.Errorf("image reference of %d bytes: %w", len(ref), errdefs.ErrInvalidArgument)
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, fmt.Errorf("image reference %q: %w: %w", ref, err, errdefs.ErrInvalidArgument)
	}
	if strings.Contains(named.String(), "..") { // the grammar allows it in a host name; no URL built from it is what it seems
		return nil, fmt.Errorf("image reference %q: \"..\": %w", ref, errdefs.ErrInvalidArgument)
	}
	if d, ok := named.(reference.Digested); ok {
		if d.Digest().Algorithm() != digest.SHA256 {
			return nil, fmt.Errorf("image reference %q: only sha256 digests are supported: %w", ref, errdefs.ErrNotImplemented)
		}
		return reference.WithDigest(reference.TrimNamed(named), d.Digest())
	}
	return reference.TagNameOnly(named), nil
}

// object is what a registry is asked for.
func object(named reference.Named) string {
	switch n := named.(type) {
	case reference.Digested:
		return n.Digest().String()
	case reference.Tagged:
		return n.Tag()
	}
	return "latest"
}

// isHex tells whether s is at least so many characters of a SHA-256 in lower-case hex, and not more than there are.
func isHex(s string, least int) bool {
	if len(s) < least || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// asID reads "sha256:<64 hex>" or "<64 hex>".
func asID(ref string) (digest.Digest, bool) {
	h := strings.TrimPrefix(ref, "sha256:")
	if !isHex(h, 64) {
		return "", false
	}
	return digest.NewDigestFromEncoded(digest.SHA256, h), true
}

// find returns the image that ref means. The caller holds mu.
func (s *Disk) find(ref string) (*record, error) {
	if id, ok := asID(ref); ok {
		if r, ok := s.images[id]; ok {
			return r, nil
		}
		return nil, fmt.Errorf("image %s: %w", ref, errdefs.ErrNotFound)
	}
	prefix := strings.TrimPrefix(ref, "sha256:")
	short := isHex(prefix, 12)
	named, err := parseName(ref)
	if err == nil {
		if id, ok := s.names[named.String()]; ok {
			return s.images[id], nil
		}
	} else if !short {
		return nil, err
	}
	if short {
		var found *record
		for id, r := range s.images {
			if !strings.HasPrefix(id.Encoded(), prefix) {
				continue
			}
			if found != nil {
				return nil, fmt.Errorf("image %s: more than one ID begins so: %w", ref, errdefs.ErrInvalidArgument)
			}
			found = r
		}
		if found != nil {
			return found, nil
		}
	}
	return nil, fmt.Errorf("image %s: %w", ref, errdefs.ErrNotFound)
}
