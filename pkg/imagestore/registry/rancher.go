package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"go.yaml.in/yaml/v3"
)

// DefaultRegistriesFiles are read when Config.RegistriesFiles is nil; the second is where k3s and RKE2 have theirs.
var DefaultRegistriesFiles = []string{"/etc/cri-server/registries.yaml", "/etc/rancher/k3s/registries.yaml"}

// registriesFile is k3s's registries.yaml, https://docs.k3s.io/installation/private-registry.
type registriesFile struct {
	Mirrors map[string]struct {
		Endpoint []string          `yaml:"endpoint"`
		Rewrite  map[string]string `yaml:"rewrite"`
	} `yaml:"mirrors"`
	Configs map[string]struct {
		Auth struct {
			Username      string `yaml:"username"`
			Password      string `yaml:"password"`
			Auth          string `yaml:"auth"`
			IdentityToken string `yaml:"identity_token"`
		} `yaml:"auth"`
		TLS struct {
			CertFile           string `yaml:"cert_file"`
			KeyFile            string `yaml:"key_file"`
			CAFile             string `yaml:"ca_file"`
			InsecureSkipVerify bool   `yaml:"insecure_skip_verify"`
		} `yaml:"tls"`
	} `yaml:"configs"`
}

// rewrite is one rule for the repository's name on a mirror.
type rewrite struct {
	pattern *regexp.Regexp
	to      string
}

// loadRegistries returns the hosts for a registry from the first of the files that exists; nil if none does or it says
// nothing about the registry.
func loadRegistries(files []string, host string) ([]Host, error) {
	for _, file := range files {
		b, err := readCapped(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		hosts, err := parseRegistries(b, host)
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %w", file, err, errdefs.ErrInvalidArgument)
		}
		for i := range hosts {
			hosts[i].From = file
		}
		return hosts, nil
	}
	return nil, nil
}

func parseRegistries(b []byte, host string) ([]Host, error) {
	var f registriesFile
	if err := yaml.Unmarshal(b, &f); err != nil {
		return nil, err
	}
	mirror, ok := f.Mirrors[host]
	if !ok {
		mirror, ok = f.Mirrors["*"]
	}
	var rules []rewrite
	for from, to := range mirror.Rewrite {
		p, err := regexp.Compile(from)
		if err != nil {
			return nil, fmt.Errorf("mirrors: %s: rewrite: %w", host, err)
		}
		rules = append(rules, rewrite{p, to})
	}
	slices.SortFunc(rules, func(a, b rewrite) int { return strings.Compare(a.pattern.String(), b.pattern.String()) })
	var out []Host
	for _, e := range mirror.Endpoint {
		h, err := hostFile{}.host(e, "")
		if err != nil {
			return nil, fmt.Errorf("mirrors: %s: %w", host, err)
		}
		h.rewrites = rules
		out = append(out, h)
	}
	server := defaultHost(host)
	at := slices.IndexFunc(out, func(h Host) bool { return h.Address == server.Address })
	if at < 0 {
		out = append(out, server)
	} else {
		out[at].Server = true // named to be reached in a certain way, by http for instance
	}
	configured := ok
	for i := range out {
		h := &out[i]
		c, ok := f.Configs[h.Address]
		if !ok && h.Server {
			c, ok = f.Configs[host]
		}
		if !ok {
			continue
		}
		configured = true
		h.SkipVerify = h.SkipVerify || c.TLS.InsecureSkipVerify
		if c.TLS.CAFile != "" {
			h.CA = []string{c.TLS.CAFile}
		}
		if c.TLS.CertFile != "" {
			h.Client = [][2]string{{c.TLS.CertFile, c.TLS.KeyFile}}
		}
		h.own = Credentials{Username: c.Auth.Username, Password: c.Auth.Password, Auth: c.Auth.Auth, IdentityToken: c.Auth.IdentityToken}
	}
	if !configured {
		return nil, nil
	}
	return out, nil
}

// repositoryOn is the name of a repository at this host.
func (h Host) repositoryOn(name string) string {
	for _, r := range h.rewrites {
		if r.pattern.MatchString(name) {
			return r.pattern.ReplaceAllString(name, r.to)
		}
	}
	return name
}
