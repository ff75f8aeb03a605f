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

// addInProcess is libcni's AddNetworkList for a list whose plugins all run in process: the same plugins in the same order, and
// the same cached result for DEL, without the text between them.
func (n *CNI) addInProcess(ctx context.Context, list *confList, rt *libcni.RuntimeConf, args string) (types.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.PluginTimeout)
	defer cancel()
	call := embedded.Call{Command: "ADD", ContainerID: rt.ContainerID, NetNS: rt.NetNS, IfName: rt.IfName, Args: args}
	r, err := n.plugins.Add(ctx, list.chain(n.exec), call, rt.CapabilityArgs)
	if err != nil {
		return nil, err
	}
	v, err := r.GetAsVersion(list.CNIVersion)
	if err != nil {
		return nil, fmt.Errorf("result: %w", err)
	}
	defer operation.FromContext(ctx).Part("network: result")()
	if err := n.cacheResult(list, rt, v); err != nil {
		return nil, fmt.Errorf("cached result: %w", err)
	}
	return v, nil
}

// cachedResult is what libcni writes for each attachment, and reads back for DEL.
type cachedResult struct {
	Kind           string         `json:"kind"`
	ContainerID    string         `json:"containerId"`
	Config         []byte         `json:"config"`
	IfName         string         `json:"ifName"`
	NetworkName    string         `json:"networkName"`
	NetNS          string         `json:"netns,omitempty"`
	CNIArgs        [][2]string    `json:"cniArgs,omitempty"`
	CapabilityArgs map[string]any `json:"capabilityArgs,omitempty"`
	Result         types.Result   `json:"result,omitempty"`
}

func (n *CNI) cacheResult(list *confList, rt *libcni.RuntimeConf, r types.Result) error {
	b, err := json.Marshal(cachedResult{
		Kind: libcni.CNICacheV1, ContainerID: rt.ContainerID, Config: list.Bytes, IfName: rt.IfName, NetworkName: list.Name,
		NetNS: rt.NetNS, CNIArgs: rt.Args, CapabilityArgs: rt.CapabilityArgs, Result: r,
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
	if err = os.Rename(temp, file); err != nil {
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

// readResult is cachedResult as it is read.
type readResult struct {
	cachedResult
	Result json.RawMessage `json:"result"`
}

// detachInProcess is libcni's DelNetworkList, with finding the attachment, for one that was made with the configuration in force
// and by plugins that all run in process. Not done: it was another, and libcni's way is to be gone.
func (n *CNI) detachInProcess(ctx context.Context, p Pod) (done bool, _ error) {
	list, err := n.list()
	if err != nil {
		return false, nil
	}
	chain := list.chain(n.exec)
	if chain == nil {
		return false, nil
	}
	file := n.resultFile(list.Name, p.ID, ifName)
	b, err := os.ReadFile(file)
	if err != nil {
		return false, nil
	}
	var a readResult
	if json.Unmarshal(b, &a) != nil || a.Kind != libcni.CNICacheV1 || a.ContainerID != p.ID || a.IfName != ifName || !bytes.Equal(a.Config, list.Bytes) {
		return false, nil
	}
	r, err := create.CreateFromBytes(a.Result)
	if err != nil {
		return false, nil
	}
	prev, err := current.NewResultFromResult(r)
	if err != nil {
		return false, nil
	}
	call := embedded.Call{ContainerID: p.ID, NetNS: p.NetNS, IfName: ifName, Args: argsText(a.CNIArgs)}
	if call.NetNS == "" && netns.Check(a.NetNS) == nil {
		call.NetNS = a.NetNS
	}
	n.verbs.RLock()
	defer n.verbs.RUnlock()
	if err := deleting(); err != nil {
		return true, err
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.PluginTimeout)
	defer cancel()
	if err := n.plugins.Del(ctx, chain, call, a.CapabilityArgs, prev); err != nil {
		return true, fmt.Errorf("network %s: %w", list.Name, err)
	}
	if err := n.spares.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return true, fmt.Errorf("cached result: %w", err)
	}
	return true, nil
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
