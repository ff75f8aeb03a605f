package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// crioPeer describes CRI-O, which has no way to sync what it unpacks (containers/storage 1.58). pinns and runc lie beside its binary.
// It unpacks in child processes: their CPU time counts, their memory doesn't.
func crioPeer(o options) (*peer, error) {
	p := &peer{name: "CRI-O", durable: "no (no option)", dir: filepath.Join(o.dir, "crio")}
	in := func(name string) string { return filepath.Join(p.dir, name) }
	beside := func(name string) string { return filepath.Join(filepath.Dir(o.crio), name) }
	conmon, err := exec.LookPath("conmon")
	if err != nil {
		return nil, fmt.Errorf("CRI-O needs conmon: %w", err)
	}
	if err := os.MkdirAll(in("cni"), 0o755); err != nil {
		return nil, err
	}
	text := fmt.Sprintf(`[crio]
root = %q
runroot = %q
storage_driver = "overlay"
log_dir = %q
version_file = %q
version_file_persist = ""
clean_shutdown_file = %q
[crio.api]
listen = %q
[crio.image]
signature_policy = %q
[crio.network]
network_dir = %q
plugin_dirs = [%q]
[crio.runtime]
default_runtime = "runc"
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
namespaces_dir = %q
pinns_path = %q
container_exits_dir = %q
container_attach_socket_dir = %q
hooks_dir = []
log_level = "warn"
[crio.nri]
enable_nri = false
nri_listen = %q
[crio.runtime.runtimes.runc]
runtime_path = %q
runtime_root = %q
monitor_path = %q
monitor_cgroup = "pod"
`, in("root"), in("run"), in("log.d"), in("version"), in("clean"), p.socket(), in("policy.json"), in("cni"), in("cni"), in("ns"), beside("pinns"),
		in("exits"), in("attach"), in("nri.sock"), beside("runc"), in("runc"), conmon)
	for name, content := range map[string]string{
		"config.toml":     text,
		"policy.json":     `{"default": [{"type": "insecureAcceptAnything"}]}`,
		"registries.conf": fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", registryAddress),
	} {
		if err := writeConfig(in(name), content); err != nil {
			return nil, err
		}
	}
	p.cmd = exec.Command(o.crio, "--config", in("config.toml"), "--config-dir", "")
	p.cmd.Env = append(os.Environ(), "CONTAINERS_REGISTRIES_CONF="+in("registries.conf"), "CONTAINERS_REGISTRIES_CONF_DIR="+in("none"))
	return p, nil
}
