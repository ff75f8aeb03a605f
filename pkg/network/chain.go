package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/smallfile"
	"github.com/seed-9a14075a/cri-server/pkg/network/embedded"
	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
)

// chain is the list ready to run in process, nil where that is not possible.
func (l *confList) chain(x *executor) *embedded.Chain {
	l.compile.Do(func() {
		for _, p := range l.Plugins {
			if !slices.Contains(x.types, p.Network.Type) {
				return
			}
		}
		if x.plugins != nil {
			l.compiled = x.plugins.Compile(l.NetworkConfigList)
		}
	})
	return l.compiled
}

// attachment is what DEL of a list whose plugins all run in process needs to know of its ADD. It is kept for as long as this process
// has the pod, so nothing is in it that is as large as the pod's annotations, or is with the pod anyway; for another process it
// is in the cached result.
type attachment struct {
	network      string
	chain        *embedded.Chain
	netns        string
	capabilities map[string]any // those that the chain asks for
	result       embedded.Attached
}

// addInProcess is libcni's AddNetworkList for a list whose plugins all run in process: the same plugins in the same order, and
// the same cached result for DEL, without the text between them. It returns the result also as text.
func (n *CNI) addInProcess(ctx context.Context, list *confList, rt *libcni.RuntimeConf, args string) (*current.Result, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.PluginTimeout)
	defer cancel()
	call := embedded.Call{Command: "ADD", ContainerID: rt.ContainerID, NetNS: rt.NetNS, IfName: rt.IfName, Args: args}
	chain := list.chain(n.exec)
	r, err := n.plugins.Add(ctx, chain, call, rt.CapabilityArgs)
	if err != nil {
		return nil, nil, err
	}
	defer operation.FromContext(ctx).Part("network: result")()
	raw, err := encode(r)
	if err != nil {
		return nil, nil, fmt.Errorf("result: %w", err)
	}
	text, err := inVersion(r, raw, list.CNIVersion)
	if err != nil {
		return nil, nil, fmt.Errorf("result: %w", err)
	}
	if err := n.cacheResult(list, rt, text); err != nil {
		return nil, nil, fmt.Errorf("cached result: %w", err)
	}
	if kept, ok := embedded.Keep(r, rt.IfName); ok {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.active[rt.ContainerID] = &attachment{list.Name, chain, rt.NetNS, chain.Wanted(rt.CapabilityArgs), kept}
	}
	return r, raw, nil
}

// encode writes a result as its MarshalJSON does, which writes and reads it a second time for the sake of an empty DNS.
func encode(r *current.Result) ([]byte, error) {
	text := struct {
		CNIVersion string               `json:"cniVersion"`
		Interfaces []*current.Interface `json:"interfaces,omitempty"`
		IPs        []*current.IPConfig  `json:"ips,omitempty"`
		Routes     []*types.Route       `json:"routes,omitempty"`
		DNS        *types.DNS           `json:"dns,omitempty"`
	}{current.ImplementedSpecVersion, r.Interfaces, r.IPs, r.Routes, nil}
	if !r.DNS.IsEmpty() {
		text.DNS = &r.DNS
	}
	return json.Marshal(text)
}

// inVersion is a result's text in a version of the specification; raw is that in the latest.
func inVersion(r *current.Result, raw []byte, version string) (json.RawMessage, error) {
	const latest, first = `{"cniVersion":"` + current.ImplementedSpecVersion + `"`, `{"cniVersion":"1.0.0"`
	switch rest, ok := bytes.CutPrefix(raw, []byte(latest)); {
	case version == current.ImplementedSpecVersion:
		return raw, nil
	case version == "1.0.0" && ok: // the same but for the number
		return append([]byte(first), rest...), nil
	}
	v, err := r.GetAsVersion(version)
	if err != nil {
		return nil, err
	}
	return json.Marshal(v)
}

// cachedResult is what libcni writes for each attachment, and reads back for DEL.
type cachedResult struct {
	Kind           string          `json:"kind"`
	ContainerID    string          `json:"containerId"`
	Config         []byte          `json:"config"`
	IfName         string          `json:"ifName"`
	NetworkName    string          `json:"networkName"`
	NetNS          string          `json:"netns,omitempty"`
	CNIArgs        [][2]string     `json:"cniArgs,omitempty"`
	CapabilityArgs map[string]any  `json:"capabilityArgs,omitempty"`
	Result         json.RawMessage `json:"result,omitempty"`
}

func (n *CNI) cacheResult(list *confList, rt *libcni.RuntimeConf, result json.RawMessage) error {
	b, err := json.Marshal(cachedResult{
		Kind: libcni.CNICacheV1, ContainerID: rt.ContainerID, Config: list.Bytes, IfName: rt.IfName, NetworkName: list.Name,
		NetNS: rt.NetNS, CNIArgs: rt.Args, CapabilityArgs: rt.CapabilityArgs, Result: result,
	})
	if err != nil {
		return err
	}
	file := n.resultFile(list.Name, rt.ContainerID, rt.IfName)
	if err = n.putResult(file, b); errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(file), 0o700); err == nil {
			err = n.putResult(file, b)
		}
	}
	return err
}

// putResult writes it beside and renames it, if it can.
func (n *CNI) putResult(file string, b []byte) error {
	temp, err := n.spares.Temp(b, 0o600)
	if err != nil {
		return err
	}
	if err = smallfile.Rename(temp, file); err != nil {
		_ = os.Remove(temp)
	}
	if errors.Is(err, unix.EXDEV) { // the results are on a file system of their own, such as a tmpfs
		return smallfile.Write(file, b, 0o600)
	}
	return err
}

// resultFile is where libcni keeps what it knows of an attachment.
func (n *CNI) resultFile(network, id, ifname string) string {
	return filepath.Join(n.cfg.CacheDir, "results", network+"-"+id+"-"+ifname)
}

// detachInProcess is libcni's DelNetworkList, with finding the attachment, for one that this process made, or one that was made
// with the configuration in force, by plugins that all run in process. Not done: it was another, and libcni's way is to be gone.
func (n *CNI) detachInProcess(ctx context.Context, p Pod) (done bool, _ error) {
	n.mu.Lock()
	a := n.active[p.ID]
	n.mu.Unlock()
	var result *current.Result
	if a != nil {
		result = a.result.Result(a.netns, ifName)
	} else if a, result = n.recall(p.ID); a == nil {
		return false, nil
	}
	call := embedded.Call{ContainerID: p.ID, NetNS: p.NetNS, IfName: ifName, Args: argsText(cniArgs(p))}
	if call.NetNS == "" && netns.Check(a.netns) == nil {
		call.NetNS = a.netns
	}
	n.verbs.RLock()
	defer n.verbs.RUnlock()
	if err := deleting(); err != nil {
		return true, err
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.PluginTimeout)
	defer cancel()
	if err := n.plugins.Del(ctx, a.chain, call, a.capabilities, result); err != nil {
		return true, fmt.Errorf("network %s: %w", a.network, err)
	}
	if err := n.spares.Remove(n.resultFile(a.network, p.ID, ifName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return true, fmt.Errorf("cached result: %w", err)
	}
	return true, nil
}

// recall reads an attachment, and what ADD returned, from its cached result; nil if it is not one of the configuration in force, by plugins in process.
func (n *CNI) recall(id string) (*attachment, *current.Result) {
	list, err := n.list()
	if err != nil {
		return nil, nil
	}
	chain := list.chain(n.exec)
	if chain == nil {
		return nil, nil
	}
	b, err := os.ReadFile(n.resultFile(list.Name, id, ifName))
	if err != nil {
		return nil, nil
	}
	var a cachedResult
	if json.Unmarshal(b, &a) != nil || a.Kind != libcni.CNICacheV1 || a.ContainerID != id || a.IfName != ifName || !bytes.Equal(a.Config, list.Bytes) {
		return nil, nil
	}
	r, err := create.CreateFromBytes(a.Result)
	if err != nil {
		return nil, nil
	}
	prev, err := current.NewResultFromResult(r)
	if err != nil {
		return nil, nil
	}
	return &attachment{network: list.Name, chain: chain, netns: a.NetNS, capabilities: a.CapabilityArgs}, prev
}

// argsText are CNI_ARGS as plugins get them.
func argsText(args [][2]string) string {
	var b strings.Builder
	for i, kv := range args {
		if i > 0 {
			b.WriteByte(';')
		}
		b.WriteString(kv[0])
		b.WriteByte('=')
		b.WriteString(kv[1])
	}
	return b.String()
}
