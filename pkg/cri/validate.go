package cri

import (
	"path/filepath"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// validateSandbox refuses what no stage below could make sense of. What depends on the node is checked where it is used.
func validateSandbox(c *runtimeapi.PodSandboxConfig) error {
	m := c.GetMetadata()
	switch {
	case c == nil:
		return invalid("config is missing")
	case m == nil:
		return invalid("config.metadata is missing")
	case m.GetName() == "" || m.GetNamespace() == "" || m.GetUid() == "":
		return invalid("config.metadata: name, namespace and uid must be set")
	case c.GetLogDirectory() != "" && !filepath.IsAbs(c.GetLogDirectory()):
		return invalid("config.log_directory %q is not absolute", c.GetLogDirectory())
	case len(c.GetHostname()) > 64: // HOST_NAME_MAX, sethostname(2)
		return invalid("config.hostname is longer than 64 bytes")
	}
	sc := c.GetLinux().GetSecurityContext()
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil {
		return invalid("config.linux.security_context: run_as_group without run_as_user")
	}
	dns := c.GetDnsConfig()
	for _, list := range [][]string{dns.GetServers(), dns.GetSearches(), dns.GetOptions(), {c.GetHostname()}} {
		for _, v := range list {
			if strings.ContainsAny(v, "\n\r\x00") {
				return invalid("config.dns_config or hostname: %q has a line break", v)
			}
		}
	}
	for _, p := range c.GetPortMappings() {
		if p.GetContainerPort() < 0 || p.GetContainerPort() > 65535 || p.GetHostPort() < 0 || p.GetHostPort() > 65535 {
			return invalid("config.port_mappings: port out of range")
		}
	}
	return nil
}

func validateContainer(c *runtimeapi.ContainerConfig) error {
	m := c.GetMetadata()
	switch {
	case c == nil:
		return invalid("config is missing")
	case m == nil || m.GetName() == "":
		return invalid("config.metadata.name must be set")
	case c.GetImage().GetImage() == "":
		return invalid("config.image must be set")
	}
	if p := c.GetLogPath(); p != "" && (filepath.IsAbs(p) || !filepath.IsLocal(p)) {
		return invalid("config.log_path %q leaves the log directory", p)
	}
	sc := c.GetLinux().GetSecurityContext()
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil && sc.GetRunAsUsername() == "" {
		return invalid("config.linux.security_context: run_as_group without run_as_user or run_as_username")
	}
	if sc.GetRunAsUser() != nil && sc.GetRunAsUsername() != "" {
		return invalid("config.linux.security_context: both run_as_user and run_as_username")
	}
	return nil
}
