package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"embed"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"text/template"
	"time"

	"github.com/seed-9a14075a/cri-server/test/images"
)

//go:embed units/* config/*
var files embed.FS

// node is the machine that the cluster is on.
type node struct {
	driver  string
	fromCRI bool // kubelet takes statistics from the CRI
	Evict   string
}

const (
	nodeName = "crinode"
	address  = "192.0.2.2" // the node's; it leads nowhere
	registry = "127.0.0.1:5055"
	etc      = "/etc/kubernetes"
	units    = "/etc/systemd/system"
)

// servers are units in the order of their start.
var servers = []string{"node-network", "cri-monitor", "cri-server", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler",
	"kube-proxy", "kubelet"}

func (n *node) Driver() string { return n.driver }

// Gates are kubelet's feature gates.
func (n *node) Gates() string {
	if n.fromCRI {
		return "PodAndContainerStatsFromCRI: true"
	}
	return ""
}

// setUp installs programs, configuration and units.
func (n *node) setUp() error {
	for _, p := range []string{"cri-server", "cri-monitor"} {
		if out, err := exec.Command("cp", "/repo/bin/"+p, "/usr/local/bin/"+p).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if out, err := exec.Command("cp", "/repo/contrib/systemd/"+p+".service", units).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	for _, p := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubectl"} {
		if err := os.Symlink("/share/kubernetes", "/usr/local/bin/"+p); err != nil {
			return err
		}
	}
	errs := []error{os.Symlink("/share/kubelet", "/usr/local/bin/kubelet"), n.write("units", units), n.write("config", etc), n.identities(), mirrors()}
	errs = append(errs, os.MkdirAll(etc+"/manifests", 0o755))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	wants := filepath.Join(units, "node.target.wants")
	if err := os.MkdirAll(wants, 0o755); err != nil {
		return err
	}
	for _, s := range servers {
		if err := os.Symlink("../"+s+".service", filepath.Join(wants, s+".service")); err != nil {
			return err
		}
	}
	return nil
}

// write fills in the templates of a directory.
func (n *node) write(from, to string) error {
	list, err := files.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, f := range list {
		t, err := template.ParseFS(files, from+"/"+f.Name())
		if err != nil {
			return err
		}
		name := filepath.Join(to, f.Name())
		if f.Name() == "cri-server.toml" {
			name = "/etc/cri-server/config.toml"
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				return err
			}
		}
		out, err := os.Create(name)
		if err != nil {
			return err
		}
		if err := errors.Join(t.Execute(out, n), out.Close()); err != nil {
			return err
		}
	}
	return nil
}

// identities makes the key that service accounts' tokens are signed with, and for everybody a token and a kubeconfig.
func (n *node) identities() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	if err := os.WriteFile(etc+"/sa.key", block, 0o600); err != nil {
		return err
	}
	var tokens strings.Builder
	for name, as := range map[string]string{"admin": "admin,admin,system:masters", "kubelet": "system:node:" + nodeName + ",kubelet,system:nodes",
		"kube-controller-manager": "system:kube-controller-manager,kcm", "kube-scheduler": "system:kube-scheduler,scheduler",
		"kube-proxy": "system:kube-proxy,proxy"} {
		token := rand.Text()
		fmt.Fprintf(&tokens, "%s,%s\n", token, as)
		text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: 'https://127.0.0.1:6443', insecure-skip-tls-verify: true}}]
users: [{name: me, user: {token: %s}}]
contexts: [{name: test, context: {cluster: test, user: me}}]
current-context: test
`, token)
		if err := os.WriteFile(etc+"/"+name+".conf", []byte(text), 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile(etc+"/tokens.csv", []byte(tokens.String()), 0o600)
}

// mirrors points the registries of the test images to the node's own.
func mirrors() error {
	for _, host := range []string{"registry.k8s.io", registry} {
		dir := filepath.Join("/etc/cri-server/certs.d", host)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		text := fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", "http://"+registry, "http://"+registry)
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// serveImages runs the registry as long as this program runs: after a reboot the images are on the node.
func (n *node) serveImages() error {
	a, err := images.Load("/repo/.cache/images", runtime.GOARCH)
	if err != nil {
		return err
	}
	catalog, err := images.Catalog(a, false)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", registry)
	if err != nil {
		return err
	}
	go func() { _ = (&http.Server{Handler: catalog, ReadHeaderTimeout: 10 * time.Second}).Serve(l) }() // ends with the program
	return nil
}

func (n *node) startUnits() error {
	if err := systemctl("daemon-reload"); err != nil {
		return err
	}
	for _, s := range servers {
		if err := systemctl("start", s+".service"); err != nil {
			return fmt.Errorf("%w\n%s", err, n.journal(s))
		}
	}
	return nil
}

func systemctl(args ...string) error {
	if out, err := exec.Command("systemctl", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("systemctl %v: %w: %s", args, err, out)
	}
	return nil
}

// journal is the end of what units said; of all of them by default.
func (n *node) journal(of ...string) string {
	if len(of) == 0 {
		of = servers
	}
	var text strings.Builder
	for _, u := range of {
		out, _ := exec.Command("journalctl", "-b", "-q", "-o", "cat", "-n", "15", "-u", u).Output()
		fmt.Fprintf(&text, "== %s\n", u)
		for _, l := range strings.SplitAfter(string(out), "\n") {
			text.WriteString(l[:min(len(l), 300)])
			if len(l) > 300 {
				text.WriteString("\n")
			}
		}
	}
	return text.String()
}

// memory says what resident memory each program takes.
func (n *node) memory() string {
	var all []string
	for _, s := range servers {
		out, _ := exec.Command("systemctl", "show", "-p", "MainPID", "--value", s).Output()
		status, err := os.ReadFile("/proc/" + strings.TrimSpace(string(out)) + "/status")
		if err != nil {
			continue
		}
		for _, l := range strings.Split(string(status), "\n") {
			var kib int
			if _, err := fmt.Sscanf(l, "VmRSS: %d kB", &kib); err == nil {
				all = append(all, fmt.Sprintf("%s %d", s, kib>>10))
			}
		}
	}
	return "resident MiB: " + strings.Join(all, ", ")
}
