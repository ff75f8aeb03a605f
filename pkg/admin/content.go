package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errhttp"
	"github.com/distribution/reference"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
)

// progressEvery is how often a pull tells how far it is.
const progressEvery = 100 * time.Millisecond

// PullEvent is one line of a pull's answer.
type PullEvent struct {
	Layers []imagestore.LayerProgress `json:"layers,omitempty"`
	// Image ends a pull that went well, Error and Status (an HTTP status) one that failed.
	Image  *Image `json:"image,omitempty"`
	Error  string `json:"error,omitempty"`
	Status int    `json:"status,omitempty"`
}

type transferRequest struct {
	Ref  string           `json:"ref"`
	Auth *imagestore.Auth `json:"auth,omitempty"`
}

type verifyRequest struct {
	Refs   []string `json:"refs,omitempty"`
	Quick  bool     `json:"quick,omitempty"`
	Repair bool     `json:"repair,omitempty"`
}

type pruneRequest struct {
	All bool `json:"all"`
}

func told(i *imagestore.Image) Image {
	return Image{ID: i.ID, RepoTags: i.RepoTags, RepoDigests: i.RepoDigests, Size: i.Size}
}

func (s *server) pull(w http.ResponseWriter, r *http.Request) {
	var q transferRequest
	if err := decode(w, r, &q); err != nil {
		s.fail(w, err)
		return
	}
	var p imagestore.Progress
	type result struct {
		image *imagestore.Image
		err   error
	}
	done := make(chan result, 1)
	go func() {
		i, err := s.images.Pull(imagestore.WithProgress(r.Context(), &p), q.Ref, q.Auth)
		done <- result{i, err}
	}()
	w.Header().Set("Content-Type", "application/x-ndjson")
	send := func(e PullEvent) {
		_ = json.NewEncoder(w).Encode(e) // a client that has gone ends the pull by its context
		_ = http.NewResponseController(w).Flush()
	}
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if layers := p.Layers(); len(layers) > 0 {
				send(PullEvent{Layers: layers})
			}
		case res := <-done:
			e := PullEvent{Layers: p.Layers()}
			if res.err != nil {
				e.Error, e.Status = res.err.Error(), errhttp.ToHTTP(res.err)
			} else {
				i := told(res.image)
				e.Image = &i
			}
			send(e)
			return
		}
	}
}

func (s *server) push(w http.ResponseWriter, r *http.Request) {
	var q transferRequest
	s.act(w, r, &q, func(ctx context.Context) error { return s.images.Push(ctx, q.Ref, q.Auth) })
}

func (s *server) untag(w http.ResponseWriter, r *http.Request) {
	var q tagRequest
	s.act(w, r, &q, func(ctx context.Context) error {
		if _, err := reference.ParseNormalizedNamed(q.Ref); err != nil { // an ID, which would remove all names
			return fmt.Errorf("untag %q: not the name of an image: %w", q.Ref, errdefs.ErrInvalidArgument)
		}
		if _, err := s.images.Get(q.Ref); err != nil {
			return err
		}
		return s.images.Remove(ctx, q.Ref)
	})
}

// act reads a request into q, does it and answers with no more than that.
func (s *server) act(w http.ResponseWriter, r *http.Request, q any, do func(context.Context) error) {
	err := decode(w, r, q)
	if err == nil {
		err = do(r.Context())
	}
	if err != nil {
		s.fail(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *server) verify(w http.ResponseWriter, r *http.Request) {
	var q verifyRequest
	if err := decode(w, r, &q); err != nil {
		s.fail(w, err)
		return
	}
	do := s.images.Verify
	if q.Repair {
		do = s.images.Repair
	}
	report, err := do(r.Context(), q.Quick, q.Refs...)
	if err != nil {
		s.fail(w, err)
		return
	}
	s.reply(w, report)
}

func (s *server) prune(w http.ResponseWriter, r *http.Request) {
	var q pruneRequest
	if err := decode(w, r, &q); err != nil {
		s.fail(w, err)
		return
	}
	p, err := s.images.Prune(r.Context(), q.All)
	if err != nil {
		s.fail(w, err)
		return
	}
	s.reply(w, p)
}

func (s *server) usage(w http.ResponseWriter, _ *http.Request) {
	list := s.images.DiskUsage()
	if list == nil {
		list = []imagestore.ImageUsage{}
	}
	s.reply(w, list)
}
