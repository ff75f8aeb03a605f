package main

import (
	"encoding/json"
	"sync"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine/native"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine/oci"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

// engines keeps the native engine and one engine for each OCI runtime that was asked for.
type engines struct {
	r      *reaper.Reaper
	native engine.Engine

	mu  sync.Mutex
	oci map[string]engine.Engine // by the JSON of its OCIRuntime
}

func newEngines(r *reaper.Reaper) (*engines, error) {
	n, err := native.New(r)
	if err != nil {
		return nil, err
	}
	return &engines{r: r, native: n, oci: map[string]engine.Engine{}}, nil
}

func (e *engines) get(rt *monitor.OCIRuntime) (engine.Engine, error) {
	if rt == nil {
		return e.native, nil
	}
	key, err := json.Marshal(rt)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if eng := e.oci[string(key)]; eng != nil {
		return eng, nil
	}
	eng, err := oci.New(oci.Config{Path: rt.Path, Root: rt.Root, Args: rt.Args}, e.r)
	if err != nil {
		return nil, err
	}
	e.oci[string(key)] = eng
	return eng, nil
}
