// Package objectid makes the ids of sandboxes and containers.
package objectid

import (
	"crypto/rand"
	"encoding/hex"
)

// New returns 64 random lower-case hex digits: no dash, so that it is one element of a systemd unit name, and long
// enough that cAdvisor and kubelet take it for a container id.
func New() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (Go 1.24+)
	return hex.EncodeToString(b[:])
}
