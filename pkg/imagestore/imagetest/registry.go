package imagetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry is an in-memory registry: what the OCI distribution-spec calls pull and push, with ranged reads.
type Registry struct {
	mu       sync.Mutex
	first    func(w http.ResponseWriter, r *http.Request) bool
	repos    map[string]*repo
	requests []string
}

type repo struct {
	blobs     map[digest.Digest][]byte
	manifests map[string]manifest // by digest and by tag
}

type manifest struct {
	mediaType string
	body      []byte
}

// Put stores an image in the repository name under tag.
func (r *Registry) Put(name, tag string, b Built) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rp := r.repo(name)
	for d, blob := range b.Blobs {
		rp.blobs[d] = blob
		var m struct {
			MediaType string `json:"mediaType"`
		}
		if json.Unmarshal(blob, &m) == nil && m.MediaType != "" {
			rp.manifests[d.String()] = manifest{m.MediaType, blob}
		}
	}
	m := manifest{b.Manifest.MediaType, b.Blobs[b.Manifest.Digest]}
	rp.manifests[b.Manifest.Digest.String()] = m
	rp.manifests[tag] = m
}

// PutManifest stores a manifest's raw bytes under a tag, and under its digest.
func (r *Registry) PutManifest(name, tag, mediaType string, body []byte) digest.Digest {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := digest.FromBytes(body)
	rp := r.repo(name)
	rp.manifests[tag] = manifest{mediaType, body}
	rp.manifests[d.String()] = rp.manifests[tag]
	return d
}

// PutBlob stores content under d, which need not be its digest.
func (r *Registry) PutBlob(name string, d digest.Digest, body []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.repo(name).blobs[d] = body
}

// Intercept lets f see each request first; when it returns true the request is answered.
func (r *Registry) Intercept(f func(w http.ResponseWriter, r *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.first = f
}

// Requests returns the method and path of each request so far.
func (r *Registry) Requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

func (r *Registry) repo(name string) *repo {
	if r.repos == nil {
		r.repos = map[string]*repo{}
	}
	rp, ok := r.repos[name]
	if !ok {
		rp = &repo{blobs: map[digest.Digest][]byte{}, manifests: map[string]manifest{}}
		r.repos[name] = rp
	}
	return rp
}

// ServeHTTP implements http.Handler.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.requests = append(r.requests, req.Method+" "+req.URL.Path)
	first := r.first
	r.mu.Unlock()
	if first != nil && first(w, req) {
		return
	}
	path, ok := strings.CutPrefix(req.URL.Path, "/v2/")
	switch {
	case !ok:
		http.NotFound(w, req)
	case path == "":
		w.WriteHeader(http.StatusOK)
	case req.Method == http.MethodGet || req.Method == http.MethodHead:
		r.read(w, req, path)
	default:
		r.write(w, req, path)
	}
}

func cut(path, kind string) (name, ref string, ok bool) {
	i := strings.LastIndex(path, "/"+kind+"/")
	if i < 0 {
		return "", "", false
	}
	return path[:i], path[i+len(kind)+2:], true
}

func (r *Registry) read(w http.ResponseWriter, req *http.Request, path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if name, ref, ok := cut(path, "manifests"); ok {
		m, ok := r.repo(name).manifests[ref]
		if !ok {
			fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN")
			return
		}
		w.Header().Set("Content-Type", m.mediaType)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(m.body).String())
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(m.body))
		return
	}
	name, ref, _ := cut(path, "blobs")
	b, ok := r.repo(name).blobs[digest.Digest(ref)]
	if !ok {
		fail(w, http.StatusNotFound, "BLOB_UNKNOWN")
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	r.mu.Unlock() // a slow reader blocks nobody
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(b))
	r.mu.Lock()
}

func (r *Registry) write(w http.ResponseWriter, req *http.Request, path string) {
	body, err := io.ReadAll(io.LimitReader(req.Body, 1<<30))
	if err != nil {
		return
	}
	if name, _, ok := cut(path, "blobs/uploads"); ok && req.Method == http.MethodPost {
		w.Header().Set("Location", "/v2/"+name+"/blobs/uploads/1")
		w.WriteHeader(http.StatusAccepted)
		return
	}
	if name, _, ok := cut(path, "blobs/uploads"); ok && req.Method == http.MethodPut {
		d := digest.Digest(req.URL.Query().Get("digest"))
		if digest.FromBytes(body) != d {
			fail(w, http.StatusBadRequest, "DIGEST_INVALID")
			return
		}
		r.PutBlob(name, d, body)
		w.WriteHeader(http.StatusCreated)
		return
	}
	if name, ref, ok := cut(path, "manifests"); ok && req.Method == http.MethodPut {
		r.PutManifest(name, ref, req.Header.Get("Content-Type"), body)
		w.WriteHeader(http.StatusCreated)
		return
	}
	fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED")
}

func fail(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, `{"errors":[{"code":%q,"message":"from imagetest"}]}`, code)
}

// Server is a Registry on a loopback port.
type Server struct {
	*Registry
	// Host is its address, "127.0.0.1:port": the registry part of image names.
	Host string
	http *http.Server
	done chan struct{}
}

// Serve starts a registry on addr; "127.0.0.1:0" takes a free port. The caller closes it.
func Serve(addr string) (*Server, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	s := &Server{Registry: &Registry{}, Host: l.Addr().String(), done: make(chan struct{})}
	s.http = &http.Server{Handler: s.Registry, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(l)
	}()
	return s, nil
}

// Close ends the server and its connections.
func (s *Server) Close() error {
	err := s.http.Close()
	<-s.done
	return err
}

// Push uploads the image to the repository name of a registry, url being such as "http://127.0.0.1:5000".
func (b Built) Push(ctx context.Context, url, name, tag string) error {
	base := strings.TrimSuffix(url, "/") + "/v2/" + name
	for _, d := range slices.Sorted(maps.Keys(b.Blobs)) {
		if err := pushBlob(ctx, url, base, d, b.Blobs[d]); err != nil {
			return fmt.Errorf("push %s: %w", d, err)
		}
	}
	var idx ocispec.Index
	_ = json.Unmarshal(b.Blobs[b.Manifest.Digest], &idx)
	for _, m := range idx.Manifests {
		if err := put(ctx, base+"/manifests/"+m.Digest.String(), m.MediaType, b.Blobs[m.Digest]); err != nil {
			return err
		}
	}
	return put(ctx, base+"/manifests/"+tag, b.Manifest.MediaType, b.Blobs[b.Manifest.Digest])
}

func pushBlob(ctx context.Context, url, base string, d digest.Digest, blob []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/blobs/uploads/", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	loc := resp.Header.Get("Location")
	if resp.StatusCode != http.StatusAccepted || loc == "" {
		return errors.New(resp.Status)
	}
	if strings.HasPrefix(loc, "/") {
		loc = strings.TrimSuffix(url, "/") + loc
	}
	sep := "?"
	if strings.Contains(loc, "?") {
		sep = "&"
	}
	return put(ctx, loc+sep+"digest="+d.String(), "application/octet-stream", blob)
}

func put(ctx context.Context, url, mediaType string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		return fmt.Errorf("PUT %s: %s: %s", url, resp.Status, b)
	}
	return nil
}
