package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"github.com/docker/docker-credential-helpers/client"
	"github.com/docker/docker-credential-helpers/credentials"
)

// DefaultAuthFiles are read when Config.AuthFiles is nil.
var DefaultAuthFiles = []string{"/etc/cri-server/auth.json"}

// helperTimeout bounds a credential helper: some ask a cloud's API.
const helperTimeout = 30 * time.Second

// dockerConfig is docker's config.json, as far as it is about credentials.
type dockerConfig struct {
	Auths map[string]struct {
		Auth, Username, Password     string
		IdentityToken, RegistryToken string
	} `json:"auths"`
	CredsStore  string            `json:"credsStore"`
	CredHelpers map[string]string `json:"credHelpers"`
}

// lookup finds the node's own credentials for a repository at a host, for pulls that bring none: in docker's config.json
// format, with its credential helpers. The trail says what was looked at, for who wonders. Nothing is found: zero.
func lookup(ctx context.Context, files []string, host, repository string) (Credentials, []string) {
	var trail []string
	for _, file := range files {
		b, err := readCapped(file)
		if errors.Is(err, fs.ErrNotExist) {
			trail = append(trail, file+": not there")
			continue
		}
		var c dockerConfig
		if err == nil {
			err = json.Unmarshal(b, &c)
		}
		if err != nil {
			trail = append(trail, fmt.Sprintf("%s: %v", file, err))
			continue
		}
		creds, said := c.find(ctx, host, repository)
		for _, s := range said {
			trail = append(trail, file+": "+s)
		}
		if creds != (Credentials{}) {
			return creds, trail
		}
	}
	return Credentials{}, trail
}

func (c *dockerConfig) find(ctx context.Context, host, repository string) (Credentials, []string) {
	var trail []string
	helper, key := c.CredsStore, helperServer(host)
	for k, h := range c.CredHelpers {
		if canonical(serverHost(k)) == canonical(host) {
			helper, key = h, k
		}
	}
	if helper != "" {
		creds, err := runHelper(ctx, helper, key)
		if err == nil {
			return creds, append(trail, "credential helper "+helper+" has credentials")
		}
		trail = append(trail, fmt.Sprintf("credential helper %s: %v", helper, err))
	}
	// The entry with the longest path that the repository lies in.
	best, found := "", false
	for k := range c.Auths {
		_, path := splitServer(k)
		under := path == "" || strings.HasPrefix(repository+"/", path+"/")
		_, bestPath := splitServer(best)
		if canonical(serverHost(k)) == canonical(host) && under && (!found || len(path) > len(bestPath)) {
			best, found = k, true
		}
	}
	if !found {
		return Credentials{}, append(trail, "no entry for "+host)
	}
	a := c.Auths[best]
	creds := Credentials{Username: a.Username, Password: a.Password, Auth: a.Auth, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
	if creds == (Credentials{}) {
		return creds, append(trail, fmt.Sprintf("entry %q holds nothing", best))
	}
	return creds, append(trail, fmt.Sprintf("entry %q has credentials", best))
}

// splitServer cuts a key of auths into host and repository path. docker's own keys end in /v1/ or /v2/, which is no path.
func splitServer(key string) (host, path string) {
	if _, rest, ok := strings.Cut(key, "://"); ok {
		key = rest
	}
	host, path, _ = strings.Cut(key, "/")
	path = strings.Trim(path, "/")
	if path == "v1" || path == "v2" {
		path = ""
	}
	return host, path
}

// helperServer is what docker asks its helpers for.
func helperServer(host string) string {
	if canonical(host) == "docker.io" {
		return "https://index.docker.io/v1/"
	}
	return host
}

var helperName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]*$`)

// program runs a helper with a deadline; what it writes to stderr is not shown, for it may hold secrets.
type program struct{ cmd *exec.Cmd }

func (p program) Output() ([]byte, error) { return p.cmd.Output() }
func (p program) Input(in io.Reader)      { p.cmd.Stdin = in }

func runHelper(ctx context.Context, name, server string) (Credentials, error) {
	if !helperName.MatchString(name) {
		return Credentials{}, fmt.Errorf("bad name %q", clip(name, 64))
	}
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	got, err := client.Get(func(args ...string) client.Program {
		cmd := exec.CommandContext(ctx, "docker-credential-"+name, args...)
		cmd.WaitDelay = time.Second
		return program{cmd}
	}, server)
	switch {
	case ctx.Err() != nil:
		return Credentials{}, fmt.Errorf("no answer in %s", helperTimeout)
	case credentials.IsErrCredentialsNotFound(err):
		return Credentials{}, errors.New("has none for " + server)
	case err != nil:
		var missing *exec.Error
		if errors.As(err, &missing) || strings.Contains(err.Error(), exec.ErrNotFound.Error()) {
			return Credentials{}, errors.New("docker-credential-" + name + " is not installed")
		}
		return Credentials{}, errors.New("failed")
	case got.Username == "<token>": // docker's way to say that the secret is an identity token
		return Credentials{IdentityToken: got.Secret}, nil
	}
	return Credentials{Username: got.Username, Password: got.Secret}, nil
}
