package handler

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// Names of features, as the configuration lists them.
const (
	RecursiveReadOnly = "recursive_read_only_mounts"
	UserNamespaces    = "user_namespaces"
)

// askTimeout bounds the run of an OCI runtime's "features" command.
const askTimeout = 10 * time.Second

// Features tells what a handler can do for the CRI.
type Features struct{ RecursiveReadOnly, UserNamespaces bool }

// asked remembers the answers of OCI runtimes by their path, for the life of the process: a runtime is replaced by an
// update of the node, after which a restart is due anyway.
var asked sync.Map // path → func() Features

// Features of a handler: those that the configuration names, else what the node can do (native engine), else what the
// OCI runtime's "features" command says; a runtime without that command has none.
func (h Handler) Features(node Features) Features {
	switch {
	case len(h.Configured) > 0:
		return Features{slices.Contains(h.Configured, RecursiveReadOnly), slices.Contains(h.Configured, UserNamespaces)}
	case h.OCI == nil:
		return node
	}
	path := h.OCI.Path
	once, _ := asked.LoadOrStore(path, sync.OnceValue(func() Features {
		ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
		defer cancel()
		f, err := ask(ctx, path)
		if err != nil {
			return Features{}
		}
		return f
	}))
	return once.(func() Features)()
}

func ask(ctx context.Context, path string) (Features, error) {
	out, err := exec.CommandContext(ctx, path, "features").Output()
	if err != nil {
		return Features{}, fmt.Errorf("%s features: %w", path, err)
	}
	var f features.Features
	if err := json.Unmarshal(out, &f); err != nil {
		return Features{}, fmt.Errorf("%s features: %w", path, err)
	}
	idmap := f.Linux != nil && f.Linux.MountExtensions != nil && f.Linux.MountExtensions.IDMap != nil &&
		f.Linux.MountExtensions.IDMap.Enabled != nil && *f.Linux.MountExtensions.IDMap.Enabled
	return Features{
		RecursiveReadOnly: slices.Contains(f.MountOptions, "rro"),
		UserNamespaces:    idmap && f.Linux != nil && slices.Contains(f.Linux.Namespaces, "user"),
	}, nil
}
