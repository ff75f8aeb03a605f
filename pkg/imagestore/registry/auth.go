package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/containerd/errdefs"
)

// Credentials of one pull, as the CRI's AuthConfig has them; all secret but ServerAddress.
type Credentials struct {
	Username, Password string
	// Auth is base64 of "username:password" and used when Username is empty.
	Auth string
	// ServerAddress, host or URL, restricts the credentials to that host.
	ServerAddress string
	// IdentityToken is exchanged for an access token (OAuth2 refresh token); RegistryToken is sent as it is.
	IdentityToken, RegistryToken string
}

// forHost reports whether these credentials may be sent to h on behalf of the registry. A mirror gets them only when
// they name it.
func (c Credentials) forHost(registry string, h Host) bool {
	if c == (Credentials{}) {
		return false
	}
	named := serverHost(c.ServerAddress)
	if named == "" {
		return h.Server
	}
	if canonical(named) == canonical(h.Address) {
		return true
	}
	return h.Server && canonical(named) == canonical(registry)
}

// serverHost is the host[:port] of docker's server addresses, such as "https://index.docker.io/v1/".
func serverHost(addr string) string {
	if _, rest, ok := strings.Cut(addr, "://"); ok {
		addr = rest
	}
	host, _, _ := strings.Cut(addr, "/")
	return strings.ToLower(host)
}

func canonical(host string) string {
	host = strings.ToLower(host)
	switch host {
	case "docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return "docker.io"
	}
	if h, port, err := net.SplitHostPort(host); err == nil && port == "443" {
		return h
	}
	return host
}

// userPassword returns the pair, from Auth where Username is empty.
func (c Credentials) userPassword() (user, password string, err error) {
	if c.Username != "" || c.Auth == "" {
		return c.Username, c.Password, nil
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(c.Auth))
	if err != nil {
		return "", "", fmt.Errorf("auth is not base64: %w", errdefs.ErrInvalidArgument)
	}
	user, password, ok := strings.Cut(string(b), ":")
	if !ok {
		return "", "", fmt.Errorf("auth is not user:password: %w", errdefs.ErrInvalidArgument)
	}
	return user, strings.TrimRight(password, "\x00"), nil
}

// answer finds the Authorization header for a challenge. used is the header that was refused.
func (h *hop) answer(ctx context.Context, challenges []string, used string) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.token != "" && h.token != used {
		return h.token, nil // another layer's request was faster
	}
	if used != "" && h.creds.RegistryToken != "" {
		return "", h.denied("the registry token was refused")
	}
	token, err := h.challenge(ctx, challenges)
	if err != nil {
		return "", err
	}
	if token == used && strings.HasPrefix(token, "Basic ") {
		return "", h.denied("user name and password were refused")
	}
	h.token = token
	return token, nil
}

// findOwn finds the node's credentials for this host, if the pull brought none.
func (h *hop) findOwn(ctx context.Context) {
	if h.owned || h.creds != (Credentials{}) {
		return
	}
	h.owned = true
	if h.Host.own != (Credentials{}) {
		h.creds = h.Host.own
		h.trail = append(h.trail, h.From+": auth of "+h.Address)
		return
	}
	host := h.Address
	if h.Server {
		host = h.registry
	}
	creds, trail := lookup(ctx, h.cfg.AuthFiles, host, h.repository)
	h.creds = creds
	h.trail = append(h.trail, trail...)
}

func (h *hop) challenge(ctx context.Context, challenges []string) (string, error) {
	h.findOwn(ctx)
	if h.creds.RegistryToken != "" {
		return "Bearer " + h.creds.RegistryToken, nil
	}
	user, password, err := h.creds.userPassword()
	if err != nil {
		return "", err
	}
	var schemes []string
	for _, c := range challenges {
		scheme, params := parseChallenge(c)
		switch {
		case strings.EqualFold(scheme, "bearer"):
			return h.bearer(ctx, params, user, password)
		case strings.EqualFold(scheme, "basic") && user != "":
			return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password)), nil
		}
		schemes = append(schemes, clip(scheme, 32))
	}
	if h.creds == (Credentials{}) {
		return "", h.denied("credentials needed and none given for this host")
	}
	return "", h.denied("the registry wants " + strings.Join(schemes, ", ") + ", which the given credentials don't answer")
}

func (h *hop) denied(why string) error {
	return &hopError{host: h.Address, err: fmt.Errorf("%s: %w", why, errdefs.ErrPermissionDenied)}
}

// bearer gets a token, https://distribution.github.io/distribution/spec/auth/token/ and …/oauth/.
func (h *hop) bearer(ctx context.Context, params map[string]string, user, password string) (string, error) {
	realm, err := url.Parse(params["realm"])
	if err != nil || realm.Host == "" {
		return "", h.denied("the registry's challenge names no token server")
	}
	if err := h.checkRealm(realm); err != nil {
		return "", err
	}
	scope := params["scope"]
	if scope == "" {
		scope = "repository:" + h.repository + ":pull"
	}
	var req *http.Request
	if h.creds.IdentityToken != "" {
		form := url.Values{
			"grant_type": {"refresh_token"}, "refresh_token": {h.creds.IdentityToken},
			"service": {params["service"]}, "scope": {scope}, "client_id": {"cri-server"},
		}
		req, err = http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(form.Encode()))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
	} else {
		q := realm.Query()
		if s := params["service"]; s != "" {
			q.Set("service", s)
		}
		q.Set("scope", scope)
		if user != "" {
			q.Set("account", user)
		}
		realm.RawQuery = q.Encode()
		req, err = http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil)
		if err == nil && user != "" {
			req.SetBasicAuth(user, password)
		}
	}
	if err != nil {
		return "", err
	}
	req.Header.Set("User-Agent", h.cfg.UserAgent)
	return h.requestToken(req)
}

// checkRealm refuses token servers that a registry has no business naming: over plain http when it itself was reached
// over https, and the link-local addresses where clouds keep instance metadata.
func (h *hop) checkRealm(realm *url.URL) error {
	switch {
	case realm.Scheme == "https":
	case realm.Scheme == "http" && (h.Scheme == "http" || h.FallbackHTTP || isLoopback(realm.Host) && isLoopback(h.Address)):
	default:
		return h.denied("the token server " + realm.Scheme + "://" + realm.Host + " is not reached over https")
	}
	if a, err := netip.ParseAddr(realm.Hostname()); err == nil && a.Unmap().IsLinkLocalUnicast() {
		return h.denied("the token server " + realm.Host + " has a link-local address")
	}
	return nil
}

// requestToken sends the request to the token server.
func (h *hop) requestToken(req *http.Request) (string, error) {
	client := &http.Client{Transport: h.http.Transport, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if r.URL.Host != via[0].URL.Host || r.URL.Scheme != via[0].URL.Scheme {
			return errors.New("token server redirects to another host: refused")
		}
		return nil
	}}
	ctx, cancel := context.WithTimeout(req.Context(), h.cfg.StallTimeout) // the answer is a few KB
	defer cancel()
	resp, err := client.Do(req.WithContext(ctx))
	if err != nil {
		if perr := context.Cause(req.Context()); perr != nil {
			return "", perr
		}
		return "", h.fail(fmt.Errorf("token server: %s", err.Error()))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		err := h.statusError(resp)
		var he *hopError
		if errors.As(err, &he) && (resp.StatusCode == http.StatusBadRequest || resp.StatusCode == http.StatusNotFound) {
			he.err = fmt.Errorf("%s: %w", he.err, errdefs.ErrPermissionDenied) // OAuth2's invalid_grant
		}
		return "", fmt.Errorf("token server: %w", err)
	}
	var t struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&t); err != nil {
		return "", h.fail(fmt.Errorf("token server: %w", err))
	}
	if t.Token == "" {
		t.Token = t.AccessToken
	}
	if t.Token == "" || strings.ContainsAny(t.Token, "\r\n") {
		return "", h.denied("the token server sent no token")
	}
	return "Bearer " + t.Token, nil
}

// parseChallenge reads one WWW-Authenticate value, RFC 9110 section 11.6.1.
func parseChallenge(v string) (scheme string, params map[string]string) {
	scheme, rest, _ := strings.Cut(strings.TrimSpace(v), " ")
	params = map[string]string{}
	for rest = strings.TrimLeft(rest, " \t,"); rest != ""; rest = strings.TrimLeft(rest, " \t,") {
		key, after, ok := strings.Cut(rest, "=")
		if !ok {
			return scheme, params
		}
		after = strings.TrimLeft(after, " \t")
		var value strings.Builder
		if strings.HasPrefix(after, `"`) {
			i := 1
			for ; i < len(after) && after[i] != '"'; i++ {
				if after[i] == '\\' && i+1 < len(after) {
					i++
				}
				value.WriteByte(after[i])
			}
			rest = after[min(i+1, len(after)):]
		} else {
			i := strings.IndexAny(after, ", \t")
			if i < 0 {
				i = len(after)
			}
			value.WriteString(after[:i])
			rest = after[i:]
		}
		params[strings.ToLower(strings.TrimSpace(key))] = value.String()
	}
	return scheme, params
}
