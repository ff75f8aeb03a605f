package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Host is one host that serves a registry's content, as hosts.toml describes it.
type Host struct {
	// Scheme is "http" or "https"; Address is host[:port]; Path is the API's root, normally "/v2".
	Scheme, Address, Path string
	// Pull and Resolve: may serve content by digest, may say what a tag means.
	Pull, Resolve bool
	// Server marks the registry itself, as opposed to a mirror.
	Server bool
	// FallbackHTTP: https is tried first, and http where the port doesn't speak TLS (loopback hosts).
	FallbackHTTP bool
	SkipVerify   bool
	// CA are PEM files. Client are certificate and key files; an empty key is in the certificate's file.
	CA     []string
	Client [][2]string
	// Header is sent with every request to this host.
	Header      http.Header
	DialTimeout time.Duration
	// From is the file that says so, empty for a default.
	From string

	// own are credentials that the configuration has for this host, and rewrites its names for repositories; both of
	// registries.yaml only.
	own      Credentials
	rewrites []rewrite
}

type hostFile struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   *bool          `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

// maxHostsFile bounds hosts.toml and each certificate file.
const maxHostsFile = 1 << 20

// LoadHosts returns the hosts to ask for content of the registry host, in order: as its directory in certsDirs says, or the
// first of the registriesFiles (k3s's format) that exists. Without configuration that is the registry itself. A hosts.toml that can't be read or understood is an error: going on without it could bypass a mirror
// or a CA that somebody relies on.
func LoadHosts(certsDirs, registriesFiles []string, host string) ([]Host, error) {
	for _, dir := range certsDirs {
		if dir == "" {
			continue
		}
		for _, name := range hostDirs(host) {
			d := filepath.Join(dir, name)
			if st, err := os.Stat(d); err != nil || !st.IsDir() {
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					return nil, err
				}
				continue
			}
			return loadHostDir(d, host)
		}
	}
	if hosts, err := loadRegistries(registriesFiles, host); err != nil || hosts != nil {
		return hosts, err
	}
	return []Host{defaultHost(host)}, nil
}

// hostDirs are the directory names that may configure a host: containerd's with the port, its spelling for file systems
// that allow no colon, the host without port is not one of them, and the default of all.
func hostDirs(host string) []string {
	if strings.ContainsAny(host, "/\\") || host == "" || host == "." || host == ".." {
		return nil
	}
	var out []string
	if i := strings.LastIndexByte(host, ':'); i > 0 {
		out = append(out, host[:i]+"_"+host[i+1:]+"_")
	}
	return append(out, host, "_default")
}

func loadHostDir(dir, host string) ([]Host, error) {
	file := filepath.Join(dir, "hosts.toml")
	b, err := readCapped(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return dockerCerts(dir, host)
	case err != nil:
		return nil, err
	}
	hosts, err := ParseHosts(b, dir, host)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", file, err, errdefs.ErrInvalidArgument)
	}
	for i := range hosts {
		hosts[i].From = file
	}
	return hosts, nil
}

// ParseHosts reads a hosts.toml of the registry host; relative certificate paths are below dir.
func ParseHosts(b []byte, dir, host string) ([]Host, error) {
	var f struct {
		hostFile
		Server string              `toml:"server"`
		Hosts  map[string]hostFile `toml:"host"`
	}
	if err := toml.Unmarshal(b, &f); err != nil {
		return nil, err
	}
	var out []Host
	for _, name := range hostOrder(b, f.Hosts) {
		h, err := f.Hosts[name].host(name, dir)
		if err != nil {
			return nil, fmt.Errorf("host %q: %w", name, err)
		}
		out = append(out, h)
	}
	server := defaultHost(host)
	if f.Server != "" {
		h, err := f.hostFile.host(f.Server, dir)
		if err != nil {
			return nil, fmt.Errorf("server: %w", err)
		}
		server = h
	} else if err := f.hostFile.apply(&server, dir); err != nil {
		return nil, err
	}
	server.Server = true
	return append(out, server), nil
}

func (f hostFile) host(address, dir string) (Host, error) {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return Host{}, err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return Host{}, fmt.Errorf("%q is no http(s) URL of a host", u.Redacted())
	}
	h := Host{Scheme: u.Scheme, Address: u.Host, Path: strings.TrimSuffix(path.Clean("/"+u.Path), "/")}
	if !f.OverridePath && !strings.HasSuffix(h.Path, "/v2") {
		h.Path += "/v2"
	}
	return h, f.apply(&h, dir)
}

func (f hostFile) apply(h *Host, dir string) (err error) {
	h.Pull, h.Resolve = len(f.Capabilities) == 0, len(f.Capabilities) == 0
	for _, c := range f.Capabilities {
		switch strings.ToLower(c) {
		case "pull":
			h.Pull = true
		case "resolve":
			h.Resolve = true
		case "push", "referrers":
		default:
			return fmt.Errorf("unknown capability %q", c)
		}
	}
	if f.SkipVerify != nil {
		h.SkipVerify = *f.SkipVerify
	}
	if h.CA, err = stringList(f.CA); err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	for i := range h.CA {
		h.CA[i] = beside(dir, h.CA[i])
	}
	if h.Client, err = clientPairs(f.Client, dir); err != nil {
		return fmt.Errorf("client: %w", err)
	}
	for k, v := range f.Header {
		values, err := stringList(v)
		if err != nil {
			return fmt.Errorf("header %q: %w", k, err)
		}
		if h.Header == nil {
			h.Header = http.Header{}
		}
		h.Header[http.CanonicalHeaderKey(k)] = values
	}
	if f.DialTimeout != "" {
		if h.DialTimeout, err = time.ParseDuration(f.DialTimeout); err != nil {
			return fmt.Errorf("dial_timeout: %w", err)
		}
	}
	return nil
}

// hostOrder returns the host tables in the order of the file, which TOML's maps don't keep.
func hostOrder(b []byte, hosts map[string]hostFile) []string {
	var order []string
	add := func(name string) {
		if _, ok := hosts[name]; ok && !slices.Contains(order, name) {
			order = append(order, name)
		}
	}
	var p unstable.Parser
	p.Reset(b)
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table && e.Kind != unstable.KeyValue {
			continue
		}
		var parts []string
		for it := e.Key(); it.Next(); {
			parts = append(parts, string(it.Node().Data))
		}
		if len(parts) >= 2 && parts[0] == "host" {
			add(parts[1])
		}
	}
	var rest []string // hosts written in a form without a table of their own, such as host = { … }
	for name := range hosts {
		if !slices.Contains(order, name) {
			rest = append(rest, name)
		}
	}
	slices.Sort(rest)
	return append(order, rest...)
}

// defaultHost is a registry without configuration. Loopback registries mostly speak plain http or have a certificate
// nobody knows.
func defaultHost(host string) Host {
	h := Host{Scheme: "https", Address: host, Path: "/v2", Pull: true, Resolve: true, Server: true}
	if host == "docker.io" {
		h.Address = "registry-1.docker.io"
		return h
	}
	if !isLoopback(host) {
		return h
	}
	switch _, port, _ := net.SplitHostPort(host); port {
	case "80":
		h.Scheme = "http"
	case "", "443":
		h.SkipVerify = true
	default:
		h.SkipVerify, h.FallbackHTTP = true, true
	}
	return h
}

func isLoopback(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.Trim(name, "[]")
	if strings.EqualFold(name, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(name)
	return err == nil && a.Unmap().IsLoopback()
}
