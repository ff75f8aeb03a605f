// Package admin is the operator's line to a running cri-server for what the CRI has no call for: import, export, naming and
// pinning of images, and the operations that run. It is HTTP on a unix socket that only root can open (mode 0600, in the
// state directory); Handler is the server's end, Client the CLI's. An error travels with its errdefs kind.
//
//	POST /images/import             an OCI or docker archive → [Image]; with ?packed=true its layers are not unpacked yet
//	GET  /images/export?ref=A&ref=B → an OCI archive; a failure half way is in the trailer Cri-Error
//	POST /images/pull               {"ref": …, "auth": …} → PullEvent, a line of JSON each, the last with the image or the error
//	POST /images/push               {"ref": …, "auth": …}
//	POST /images/verify             {"refs": […], "quick": …, "repair": …} → imagestore.Report
//	POST /images/prune              {"all": …} → imagestore.Pruned
//	GET  /images/usage              → [imagestore.ImageUsage]
//	POST /images/tag                {"ref": …, "name": …}
//	POST /images/untag              {"ref": …}: removes one name; with the last one the image goes
//	POST /images/pin                {"ref": …, "pinned": true}
//	GET  /operations                → [operation.Timeline]
//	GET  /process                   → Process
//	GET  /debug/pprof/…             → profiles of cri-server, for `go tool pprof` (net/http/pprof); those of waiting, mutex and
//	                                  block, with ?seconds=N only
//	POST /gc                        {"dry_run": …} → Collected
package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"runtime"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errhttp"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
)

// Images is what the handler needs of an imagestore.Store.
type Images interface {
	Import(ctx context.Context, r io.Reader) ([]*imagestore.Image, error)
	ImportPacked(ctx context.Context, r io.Reader) ([]*imagestore.Image, error)
	Export(ctx context.Context, w io.Writer, refs ...string) error
	Tag(ctx context.Context, ref, name string) error
	Pin(ctx context.Context, ref string, pinned bool) error
	Get(ref string) (*imagestore.Image, error)
	Pull(ctx context.Context, ref string, auth *imagestore.Auth) (*imagestore.Image, error)
	Push(ctx context.Context, ref string, auth *imagestore.Auth) error
	Remove(ctx context.Context, ref string) error
	Verify(ctx context.Context, quick bool, refs ...string) (*imagestore.Report, error)
	Repair(ctx context.Context, quick bool, refs ...string) (*imagestore.Report, error)
	Prune(ctx context.Context, all bool) (imagestore.Pruned, error)
	DiskUsage() []imagestore.ImageUsage
}

// Image is one imported image.
type Image struct {
	ID          string   `json:"id"`
	RepoTags    []string `json:"repo_tags,omitempty"`
	RepoDigests []string `json:"repo_digests,omitempty"`
	Size        uint64   `json:"size"`
}

type failure struct {
	Error string `json:"error"`
}

type tagRequest struct {
	Ref  string `json:"ref"`
	Name string `json:"name"`
}

type pinRequest struct {
	Ref    string `json:"ref"`
	Pinned bool   `json:"pinned"`
}

// errorTrailer carries what went wrong after the reply had begun.
const errorTrailer = "Cri-Error"

// maxRequest bounds what is no archive.
const maxRequest = 64 << 10

// Garbage is something on the node that no record of a pod, container or image stands for.
type Garbage struct {
	Kind string `json:"kind"` // processes, cgroup, snapshot, files, mounts, attachment, address, nftables, netns, layer, blob
	Name string `json:"name"`
	Why  string `json:"why"`
	// Error says why it could not be taken down.
	Error string `json:"error,omitempty"`
}

// Collected is what was found, or with a dry run would be taken down.
type Collected struct {
	Garbage []Garbage `json:"garbage"`
	// Error is about what could not be looked at.
	Error string `json:"error,omitempty"`
}

type gcRequest struct {
	DryRun bool `json:"dry_run"`
}

// Collect finds what no record stands for and, unless dry, takes it down.
type Collect func(ctx context.Context, dry bool) ([]Garbage, error)

// Handler serves the API. operations and collect may be nil.
func Handler(images Images, operations func() []operation.Timeline, collect Collect, log *slog.Logger) http.Handler {
	s := &server{images, operations, collect, log}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /images/import", s.importImages)
	mux.HandleFunc("GET /images/export", s.export)
	mux.HandleFunc("POST /images/tag", s.tag)
	mux.HandleFunc("POST /images/pin", s.pin)
	mux.HandleFunc("POST /images/untag", s.untag)
	mux.HandleFunc("POST /images/pull", s.pull)
	mux.HandleFunc("POST /images/push", s.push)
	mux.HandleFunc("POST /images/verify", s.verify)
	mux.HandleFunc("POST /images/prune", s.prune)
	mux.HandleFunc("GET /images/usage", s.usage)
	mux.HandleFunc("GET /operations", s.running)
	mux.HandleFunc("GET /process", s.process)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/pprof/mutex", contention(func(on bool) { runtime.SetMutexProfileFraction(map[bool]int{true: 1}[on]) }))
	mux.HandleFunc("GET /debug/pprof/block", contention(func(on bool) { runtime.SetBlockProfileRate(map[bool]int{true: 1}[on]) }))
	mux.HandleFunc("POST /gc", s.collectGarbage)
	return mux
}

// contention serves a profile of waiting, ?seconds=N of it, which the program takes down only meanwhile: nothing is paid for it at
// other times. One is made at a time.
func contention(record func(on bool)) http.HandlerFunc {
	var one sync.Mutex
	return func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("seconds") == "" {
			http.Error(w, "say for how long: ?seconds=5", http.StatusBadRequest)
			return
		}
		if !one.TryLock() {
			http.Error(w, "a profile of this kind is being made", http.StatusConflict)
			return
		}
		defer one.Unlock()
		record(true)
		defer record(false)
		pprof.Index(w, r)
	}
}

type server struct {
	images     Images
	operations func() []operation.Timeline
	collect    Collect
	log        *slog.Logger
}

func (s *server) importImages(w http.ResponseWriter, r *http.Request) {
	load := s.images.Import
	if r.URL.Query().Get("packed") == "true" {
		load = s.images.ImportPacked
	}
	list, err := load(r.Context(), r.Body)
	if err != nil {
		s.fail(w, err)
		return
	}
	out := make([]Image, 0, len(list))
	for _, i := range list {
		out = append(out, told(i))
	}
	s.reply(w, out)
}

func (s *server) export(w http.ResponseWriter, r *http.Request) {
	refs := r.URL.Query()["ref"]
	if len(refs) == 0 {
		s.fail(w, fmt.Errorf("no image named: %w", errdefs.ErrInvalidArgument))
		return
	}
	// What is likely to be wrong should be said before the reply begins.
	for _, ref := range refs {
		if _, err := s.images.Get(ref); err != nil {
			s.fail(w, err)
			return
		}
	}
	w.Header().Set("Content-Type", "application/x-tar")
	w.Header().Set("Trailer", errorTrailer)
	if err := s.images.Export(r.Context(), w, refs...); err != nil {
		s.log.Warn("export", "images", refs, "error", err)
		w.Header().Set(errorTrailer, headerText(err.Error()))
	}
}

func (s *server) tag(w http.ResponseWriter, r *http.Request) {
	var q tagRequest
	if err := decode(w, r, &q); err != nil {
		s.fail(w, err)
		return
	}
	if err := s.images.Tag(r.Context(), q.Ref, q.Name); err != nil {
		s.fail(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *server) pin(w http.ResponseWriter, r *http.Request) {
	var q pinRequest
	if err := decode(w, r, &q); err != nil {
		s.fail(w, err)
		return
	}
	if err := s.images.Pin(r.Context(), q.Ref, q.Pinned); err != nil {
		s.fail(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *server) running(w http.ResponseWriter, _ *http.Request) {
	list := []operation.Timeline{}
	if s.operations != nil {
		list = append(list, s.operations()...)
	}
	s.reply(w, list)
}

func (s *server) collectGarbage(w http.ResponseWriter, r *http.Request) {
	var q gcRequest
	if err := decode(w, r, &q); err != nil {
		s.fail(w, err)
		return
	}
	if s.collect == nil {
		s.fail(w, fmt.Errorf("gc: %w", errdefs.ErrNotImplemented))
		return
	}
	list, err := s.collect(r.Context(), q.DryRun)
	if list == nil && err != nil {
		s.fail(w, err)
		return
	}
	c := Collected{Garbage: append([]Garbage{}, list...)}
	if err != nil {
		c.Error = err.Error()
	}
	s.reply(w, c)
}

func decode(w http.ResponseWriter, r *http.Request, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("request: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (s *server) reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.log.Debug("admin reply", "error", err)
	}
}

func (s *server) fail(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(errhttp.ToHTTP(err))
	_ = json.NewEncoder(w).Encode(failure{err.Error()}) // the client has gone; there is nobody to tell
}

// headerText makes an error fit for a header's value.
func headerText(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = ' '
		}
	}
	return string(b[:min(len(b), 4000)])
}
