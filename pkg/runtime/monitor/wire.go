package monitor

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/metrics"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// protocolMin and protocolMax are the versions of the protocol that this build speaks. Unknown fields are ignored and
// unknown kinds refused one by one, so the version only changes when the frame does.
const (
	protocolMin = 1
	protocolMax = 1
)

// Version tells which cri-monitor answers.
type Version struct {
	Protocol int       `json:"protocol"`
	Build    string    `json:"build"`
	Pid      int       `json:"pid"`
	Started  time.Time `json:"started"`
	// Goroutines and HeapLive (bytes that the last garbage collection found in use) are of the moment of the answer.
	Goroutines int    `json:"goroutines,omitempty"`
	HeapLive   uint64 `json:"heap_live,omitempty"`
}

// measured is the version with what is true at this moment only.
func (s *Server) measured() Version {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	v := s.version
	v.Goroutines, v.HeapLive = runtime.NumGoroutine(), live[0].Value.Uint64()
	return v
}

// hello opens a connection: the client offers a range, the server answers with Min = Max = the version to speak.
type hello struct {
	Min int `json:"min"`
	Max int `json:"max"`
}

// negotiate picks the newest common version.
func (h hello) negotiate() (int, error) {
	v := min(h.Max, protocolMax)
	if v < h.Min || v < protocolMin {
		return 0, fmt.Errorf("protocol versions %d to %d are not spoken by this cri-monitor, it has %d to %d: %w",
			h.Min, h.Max, protocolMin, protocolMax, errdefs.ErrNotImplemented)
	}
	return v, nil
}

// target names a container and what some calls need beside it.
type target struct {
	ID     string `json:"id"`
	Signal int    `json:"signal,omitempty"`
	Width  uint16 `json:"width,omitempty"`
	Height uint16 `json:"height,omitempty"`
	// Session names an exec session of the container.
	Session uint64 `json:"session,omitempty"`
}

// stdioCall opens an exec or an attachment. The three flags say which fds came along, in this order.
type stdioCall struct {
	ID      string         `json:"id"`
	Process *specs.Process `json:"process,omitempty"`   // exec
	Env     EnvBytes       `json:"env_bytes,omitempty"` // of Process, where it is not UTF-8
	Seccomp []byte         `json:"seccomp,omitempty"`   // exec
	Stdin   bool           `json:"stdin,omitempty"`
	Stdout  bool           `json:"stdout,omitempty"`
	Stderr  bool           `json:"stderr,omitempty"`
	// Releases: the client sends kindRelease when what the program left behind may stay. Without it, everything that
	// is there when the connection ends is killed. (Clients that don't know it leave all that outlives the program.)
	Releases bool `json:"releases,omitempty"` // exec
	// Brief: a program that ends soon is told of once, by a kindExited with what a kindStarted would have said. Servers that
	// don't know it send both.
	Brief bool `json:"brief,omitempty"` // exec
	// Session is what the session is to be called, see clientNumbers: so the client can end it although it got no answer. Servers
	// that don't know it choose for themselves, as they do without it.
	Session uint64 `json:"session,omitempty"` // exec
	// Own: Seccomp is the container's own filter.
	Own bool `json:"own,omitempty"` // exec
}

// execStarted and execExited are what an exec's connection tells. With a terminal the former carries its master.
type execStarted struct {
	Pid     int    `json:"pid"`
	Session uint64 `json:"session,omitempty"`
	// Stays: after a kindRelease the connection is there for further requests.
	Stays bool `json:"stays,omitempty"`
}

type execExited struct {
	Code int `json:"code"`
	// Started is there if nothing was told before, see stdioCall.Brief.
	Started *execStarted `json:"started,omitempty"`
}

// eventsCall opens a stream of events; an empty body stands for one of all types.
type eventsCall struct {
	// But are types of events that are not to be sent. Servers that don't know it send them too.
	But []string `json:"but,omitempty"`
}

type snapshot struct {
	Events int `json:"events"`
}

// wireError carries an error across the line.
type wireError struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
}

// errorKinds are the kinds that keep their identity; the first that matches counts.
var errorKinds = []struct {
	name string
	err  error
}{
	{"not_found", errdefs.ErrNotFound},
	{"already_exists", errdefs.ErrAlreadyExists},
	{"failed_precondition", errdefs.ErrFailedPrecondition},
	{"invalid_argument", errdefs.ErrInvalidArgument},
	{"not_implemented", errdefs.ErrNotImplemented},
	{"permission_denied", errdefs.ErrPermissionDenied},
	{"resource_exhausted", errdefs.ErrResourceExhausted},
	{"unavailable", errdefs.ErrUnavailable},
	{"deadline_exceeded", context.DeadlineExceeded},
	{"canceled", context.Canceled},
	{"aborted", errdefs.ErrAborted},
	{"out_of_range", errdefs.ErrOutOfRange},
	{"data_loss", errdefs.ErrDataLoss},
	{"unauthenticated", errdefs.ErrUnauthenticated},
	{"internal", errdefs.ErrInternal},
}

func encodeError(err error) wireError {
	for _, k := range errorKinds {
		if errors.Is(err, k.err) {
			return wireError{k.name, err.Error()}
		}
	}
	return wireError{"unknown", err.Error()}
}

func (w wireError) decode() error {
	for _, k := range errorKinds {
		if w.Kind == k.name {
			return &remoteError{w.Message, k.err}
		}
	}
	return &remoteError{w.Message, errdefs.ErrUnknown}
}

// remoteError is an error of the other side: its message, and its kind for errors.Is.
type remoteError struct {
	message string
	kind    error
}

func (e *remoteError) Error() string { return e.message }
func (e *remoteError) Unwrap() error { return e.kind }
