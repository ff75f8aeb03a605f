// Package handler resolves CRI runtime handlers (RuntimeClass.handler) to what starts their containers.
package handler

import (
	"fmt"
	"path/filepath"
	"sort"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// Handler starts containers. OCI nil means the native engine.
type Handler struct {
	// Name is what the CRI calls it; "" is the default handler.
	Name string
	OCI  *monitor.OCIRuntime
	// Configured are the features that the configuration names; see Features.
	Configured []string
}

// Table holds the handlers of this node. It always has the default handler "".
type Table struct {
	byName map[string]Handler
}

// StateDir is where the OCI runtime behind a handler keeps what it knows of a container; "" where there is none, or the
// handler is not configured any more.
func (t *Table) StateDir(name, id string) string {
	if t == nil {
		return ""
	}
	h, err := t.Resolve(name)
	if err != nil || h.OCI == nil || h.OCI.Root == "" {
		return ""
	}
	return filepath.Join(h.OCI.Root, id)
}

// NewTable makes a table. def names the handler that "" stands for.
func NewTable(handlers []Handler, def string) (*Table, error) {
	t := &Table{byName: map[string]Handler{}}
	for _, h := range handlers {
		if h.Name == "" {
			return nil, fmt.Errorf("runtime handler without a name: %w", errdefs.ErrInvalidArgument)
		}
		t.byName[h.Name] = h
	}
	d, ok := t.byName[def]
	if !ok {
		return nil, fmt.Errorf("default runtime handler %q is not configured (there are: %s): %w",
			def, strings.Join(t.Names(), ", "), errdefs.ErrInvalidArgument)
	}
	d.Name = ""
	t.byName[""] = d
	return t, nil
}

// Resolve finds a handler. An unknown name is an ErrInvalidArgument that lists the known ones: the CRI wants
// RunPodSandbox and PullImage to reject it.
func (t *Table) Resolve(name string) (Handler, error) {
	h, ok := t.byName[name]
	if !ok {
		return Handler{}, fmt.Errorf("unknown runtime handler %q (there are: %s): %w",
			name, strings.Join(t.Names(), ", "), errdefs.ErrInvalidArgument)
	}
	return h, nil
}

// Names lists the handlers in order, the default "" left out.
func (t *Table) Names() []string {
	var names []string
	for n := range t.byName {
		if n != "" {
			names = append(names, n)
		}
	}
	sort.Strings(names)
	return names
}
