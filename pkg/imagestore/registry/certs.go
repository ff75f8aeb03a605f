package registry

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// dockerCerts reads a directory in docker's layout: *.crt are CAs, *.cert with *.key are client certificates.
func dockerCerts(dir, host string) ([]Host, error) {
	h := defaultHost(host)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		switch {
		case e.IsDir():
		case strings.HasSuffix(name, ".crt"):
			h.CA = append(h.CA, name)
		case strings.HasSuffix(name, ".cert"):
			key := strings.TrimSuffix(name, ".cert") + ".key"
			if _, err := os.Stat(key); err != nil {
				key = ""
			}
			h.Client = append(h.Client, [2]string{name, key})
		}
	}
	if len(h.CA) > 0 || len(h.Client) > 0 {
		h.SkipVerify, h.FallbackHTTP = false, false
	}
	return []Host{h}, nil
}

func stringList(v any) ([]string, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		out := make([]string, 0, len(v))
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, fmt.Errorf("%T is no string", e)
			}
			out = append(out, s)
		}
		return out, nil
	}
	return nil, fmt.Errorf("%T is neither a string nor a list of strings", v)
}

// clientPairs accepts "file", ["file", …] (certificate and key in one) and [["cert", "key"], …].
func clientPairs(v any, dir string) ([][2]string, error) {
	list, ok := v.([]any)
	if !ok {
		files, err := stringList(v)
		if err != nil || len(files) == 0 {
			return nil, err
		}
		return [][2]string{{beside(dir, files[0]), ""}}, nil
	}
	var out [][2]string
	for _, e := range list {
		files, err := stringList(e)
		switch {
		case err != nil:
			return nil, err
		case len(files) == 1:
			out = append(out, [2]string{beside(dir, files[0]), ""})
		case len(files) == 2 && files[1] == "":
			out = append(out, [2]string{beside(dir, files[0]), ""})
		case len(files) == 2:
			out = append(out, [2]string{beside(dir, files[0]), beside(dir, files[1])})
		default:
			return nil, fmt.Errorf("%d files where certificate and key are due", len(files))
		}
	}
	return out, nil
}

func beside(dir, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(dir, name)
}

// tlsConfig reads the host's certificates.
func tlsConfig(h Host) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: h.SkipVerify}
	if len(h.CA) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		for _, f := range h.CA {
			b, err := readCapped(f)
			if err != nil {
				return nil, fmt.Errorf("ca: %w", err)
			}
			if !pool.AppendCertsFromPEM(b) {
				return nil, fmt.Errorf("ca: %s holds no PEM certificate", f)
			}
		}
		c.RootCAs = pool
	}
	for _, pair := range h.Client {
		cert, err := readCapped(pair[0])
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		key := cert
		if pair[1] != "" {
			if key, err = readCapped(pair[1]); err != nil {
				return nil, fmt.Errorf("client key: %w", err)
			}
		}
		kp, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("client certificate %s: %w", pair[0], err)
		}
		c.Certificates = append(c.Certificates, kp)
	}
	return c, nil
}

func readCapped(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxHostsFile+1))
	if err == nil && len(b) > maxHostsFile {
		err = fmt.Errorf("%s is larger than %d bytes", name, maxHostsFile)
	}
	return b, err
}
