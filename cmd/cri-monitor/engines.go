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
	native *native.Engine

	mu  sync.Mutex
	oci map[string]*ociEngine // by the JSON of its OCIRuntime
}

// ociEngine is made by its first user; others wait for that one only, since it runs the binary.
type ociEngine struct {
	mu  sync.Mutex
	eng engine.Engine
}

func newEngines(r *reaper.Reaper) (*engines, error) {
	n, err := native.New(r)
	if err != nil {
		return nil, err
	}
	return &engines{r: r, native: n, oci: map[string]*ociEngine{}}, nil
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
	o := e.oci[string(key)]
	if o == nil {
		o = &ociEngine{}
		e.oci[string(key)] = o
	}
	e.mu.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.eng == nil { // after a failure the next one tries again: the binary may have been installed meanwhile
		eng, err := oci.New(oci.Config{Path: rt.Path, Root: rt.Root, Args: rt.Args, UserNS: e.native.HoldUserNS}, e.r)
		if err != nil {
			return nil, err
		}
		o.eng = eng
	}
	return o.eng, nil
}
