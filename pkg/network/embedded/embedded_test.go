package embedded

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func plugins(t *testing.T) *Plugins {
	t.Helper()
	p := New(t.TempDir(), slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// TestBadCalls needs no privileges: all is refused before anything is touched.
func TestBadCalls(t *testing.T) {
	p := plugins(t)
	good := Call{Command: "ADD", ContainerID: "c", NetNS: "/none", IfName: "eth0"}
	bridge := `{"cniVersion":"1.0.0","name":"n","type":"bridge"}`
	for name, tc := range map[string]struct {
		plugin, conf string
		change       func(*Call)
		kind         func(error) bool
	}{
		"command":           {"bridge", bridge, func(c *Call) { c.Command = "MOVE" }, errdefs.IsNotImplemented},
		"container id":      {"bridge", bridge, func(c *Call) { c.ContainerID = "../x" }, errdefs.IsInvalidArgument},
		"no container id":   {"portmap", bridge, func(c *Call) { c.ContainerID = "" }, errdefs.IsInvalidArgument},
		"interface name":    {"bridge", bridge, func(c *Call) { c.IfName = "a/b" }, errdefs.IsInvalidArgument},
		"long interface":    {"bridge", bridge, func(c *Call) { c.IfName = strings.Repeat("x", 16) }, errdefs.IsInvalidArgument},
		"no JSON":           {"bridge", `{`, nil, errdefs.IsInvalidArgument},
		"version":           {"bridge", `{"cniVersion":"7.0.0","name":"n"}`, nil, errdefs.IsInvalidArgument},
		"network name":      {"host-local", `{"cniVersion":"1.0.0","name":"../n","ipam":{"subnet":"10.0.0.0/24"}}`, nil, errdefs.IsInvalidArgument},
		"no network name":   {"bridge", `{"cniVersion":"1.0.0"}`, nil, errdefs.IsInvalidArgument},
		"bridge name":       {"bridge", `{"cniVersion":"1.0.0","name":"n","bridge":"0123456789abcdef"}`, nil, errdefs.IsInvalidArgument},
		"bridge type":       {"bridge", `{"cniVersion":"1.0.0","name":"n","mtu":"big"}`, nil, errdefs.IsInvalidArgument},
		"no namespace":      {"bridge", bridge, nil, errdefs.IsNotFound},
		"lo, no namespace":  {"loopback", bridge, nil, errdefs.IsNotFound},
		"portmap first":     {"portmap", bridge, nil, errdefs.IsInvalidArgument},
		"unknown plugin":    {"ptp", bridge, nil, errdefs.IsNotFound},
		"vlan":              {"bridge", `{"cniVersion":"1.0.0","name":"n","vlan":3}`, nil, errdefs.IsNotImplemented},
		"vlanTrunk":         {"bridge", `{"cniVersion":"1.0.0","name":"n","vlanTrunk":[{"id":3}]}`, nil, errdefs.IsNotImplemented},
		"markMasqBit":       {"portmap", `{"cniVersion":"1.0.0","name":"n","markMasqBit":3}`, nil, errdefs.IsNotImplemented},
		"iptables":          {"portmap", `{"cniVersion":"1.0.0","name":"n","backend":"iptables"}`, nil, errdefs.IsNotImplemented},
		"host port":         {"portmap", portmapped(`{"hostPort":0,"containerPort":80,"protocol":"tcp"}`), nil, errdefs.IsInvalidArgument},
		"container port":    {"portmap", portmapped(`{"hostPort":80,"containerPort":65536,"protocol":"tcp"}`), nil, errdefs.IsInvalidArgument},
		"host address":      {"portmap", portmapped(`{"hostPort":80,"containerPort":80,"protocol":"tcp","hostIP":"x"}`), nil, errdefs.IsInvalidArgument},
		"CHECK, no address": {"host-local", `{"cniVersion":"1.0.0","name":"n","ipam":{"subnet":"10.0.0.0/24"}}`, func(c *Call) { c.Command = "CHECK" }, errdefs.IsNotFound},
	} {
		c := good
		if tc.change != nil {
			tc.change(&c)
		}
		if _, err := p.Run(context.Background(), tc.plugin, c, []byte(tc.conf)); err == nil || !tc.kind(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func portmapped(mapping string) string {
	return `{"cniVersion":"1.0.0","name":"n","prevResult":{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}]},"runtimeConfig":{"portMappings":[` + mapping + `]}}`
}

// TestGoneNamespace: DEL works when everything is gone already.
func TestGoneNamespace(t *testing.T) {
	p := plugins(t)
	for _, ns := range []string{"", "/none"} {
		for _, plugin := range Types {
			conf := `{"cniVersion":"1.0.0","name":"n","ipam":{"type":"host-local","subnet":"10.0.0.0/24"}}`
			if _, err := p.Run(context.Background(), plugin, Call{Command: "DEL", ContainerID: "c", IfName: "eth0", NetNS: ns}, []byte(conf)); err != nil {
				t.Errorf("%s, namespace %q: %v", plugin, ns, err)
			}
		}
	}
}

func TestVersion(t *testing.T) {
	out, err := plugins(t).Run(context.Background(), "bridge", Call{Command: "VERSION"}, []byte(`{}`))
	if err != nil || !strings.Contains(string(out), `"1.1.0"`) {
		t.Errorf("%s %v", out, err)
	}
}
