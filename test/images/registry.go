package images

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// The credentials that repositories below private/ ask for.
const (
	User     = "ada"
	Password = "difference-engine"
	token    = "token-for-ada"
)

// distance is how far away the registry is. A spec of critest wants a pull of an image whose layers are there already to
// take longer than a millisecond.
const distance = 2 * time.Millisecond

// Registry is a read-only OCI distribution server. What is below some repository prefixes misbehaves:
//
//	private/  wants a bearer token, which the token realm gives for User and Password
//	stall/    sends half of each layer and then nothing until the client goes away
//	corrupt/  serves layers with one bit turned
//
// Add everything before serving; ServeHTTP is safe for concurrent use.
type Registry struct {
	manifests map[string]*Image          // by repo:tag and repo@digest
	blobs     map[digest.Digest][]byte   // of all repositories
	layers    map[digest.Digest]struct{} // blobs that stall/ and corrupt/ spoil
	tags      map[string][]string
}

// NewRegistry is an empty registry.
func NewRegistry() *Registry {
	return &Registry{manifests: map[string]*Image{}, blobs: map[digest.Digest][]byte{},
		layers: map[digest.Digest]struct{}{}, tags: map[string][]string{}}
}

// Add serves image as repo:tag and by its digest.
func (r *Registry) Add(repo, tag string, image *Image) {
	r.manifests[repo+":"+tag] = image
	r.tags[repo] = append(r.tags[repo], tag)
	for _, i := range append([]*Image{image}, image.children...) {
		r.manifests[repo+"@"+i.Digest.String()] = i
		for d, b := range i.blobs {
			r.blobs[d] = b
			if len(b) > 0 && b[0] != '{' {
				r.layers[d] = struct{}{}
			}
		}
	}
}

// Digest is the digest that repo:tag stands for.
func (r *Registry) Digest(repo, tag string) (digest.Digest, error) {
	i := r.manifests[repo+":"+tag]
	if i == nil {
		return "", fmt.Errorf("no image %s:%s", repo, tag)
	}
	return i.Digest, nil
}

// ServeHTTP implements the pull side of the distribution specification.
func (r *Registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if q.URL.Path == "/token" {
		serveToken(w, q)
		return
	}
	path, ok := strings.CutPrefix(q.URL.Path, "/v2/")
	if !ok || q.Method != http.MethodGet && q.Method != http.MethodHead {
		refuse(w, http.StatusNotFound, "UNSUPPORTED", "only pulls are served")
		return
	}
	if strings.HasPrefix(path, "private/") && q.Header.Get("Authorization") != "Bearer "+token {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test",scope="repository:private:pull"`, q.Host))
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		return
	}
	switch repo, kind, ref := split(path); kind {
	case "manifests":
		r.serveManifest(w, q, repo, ref)
	case "blobs":
		r.serveBlob(w, q, repo, digest.Digest(ref))
	case "tags":
		_ = json.NewEncoder(w).Encode(map[string]any{"name": repo, "tags": r.tags[repo]})
	default:
		if path != "" {
			refuse(w, http.StatusNotFound, "NAME_UNKNOWN", "no such path")
			return
		}
		_, _ = w.Write([]byte("{}"))
	}
}

// split cuts "a/b/manifests/x" into its parts.
func split(path string) (repo, kind, ref string) {
	for _, kind := range []string{"manifests", "blobs", "tags"} {
		if repo, ref, ok := strings.Cut(path, "/"+kind+"/"); ok {
			return repo, kind, ref
		}
	}
	return "", "", ""
}

func serveToken(w http.ResponseWriter, q *http.Request) {
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(User+":"+Password))
	form := q.PostFormValue("username") == User && q.PostFormValue("password") == Password
	if q.Header.Get("Authorization") != want && !form {
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "wrong user name or password")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": 300})
}

func (r *Registry) serveManifest(w http.ResponseWriter, q *http.Request, repo, ref string) {
	time.Sleep(distance)
	key := repo + ":" + ref
	if strings.Contains(ref, ":") {
		key = repo + "@" + ref
	}
	i := r.manifests[key]
	if i == nil {
		refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
		return
	}
	w.Header().Set("Content-Type", i.mediaType)
	w.Header().Set("Docker-Content-Digest", i.Digest.String())
	w.Header().Set("Content-Length", strconv.Itoa(len(i.body)))
	if q.Method == http.MethodGet {
		_, _ = w.Write(i.body)
	}
}

func (r *Registry) serveBlob(w http.ResponseWriter, q *http.Request, repo string, d digest.Digest) {
	b, ok := r.blobs[d]
	if !ok {
		refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown")
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", d.String())
	if _, layer := r.layers[d]; layer && q.Method == http.MethodGet {
		switch {
		case strings.HasPrefix(repo, "stall/"):
			w.Header().Set("Content-Length", strconv.Itoa(len(b)))
			_, _ = w.Write(b[:len(b)/2])
			_ = http.NewResponseController(w).Flush()
			<-q.Context().Done()
			return
		case strings.HasPrefix(repo, "corrupt/"):
			b = bytes.Clone(b)
			b[len(b)/2] ^= 1
		}
	}
	http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(b))
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}
