package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// span is a stage of an operation as cri-server's verbose status has it: see package operation.
type span struct {
	Name     string        `json:"name"`
	Duration time.Duration `json:"duration_ns"`
}

// timeline is an operation of a pod or container: making it, starting it.
type timeline struct {
	Key    string        `json:"key"`
	Total  time.Duration `json:"total_ns"`
	Stages []span        `json:"stages"`
	Parts  []span        `json:"parts"` // of stages, some at the same time
}

// within marks the parts of stages among the names of spans: they are in their stage's time.
const within = ": within: "

// spans starts pods and notes where the time of each call went. The rest of a call is gRPC, and the way to the operation
// and back. Of other runtimes, which tell no stages, there is nothing.
func spans(ctx context.Context, d *daemon, s size, r *result) error {
	if d.monitor == "" {
		return nil
	}
	for range max(10, s.Cycles) {
		took := map[string]time.Duration{}
		p, err := d.begin(ctx, d.next(), limits{}, func(call string, t time.Duration) { took[call] = t })
		if err != nil {
			return err
		}
		sb, err := d.rt.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
		if err != nil {
			return err
		}
		ctr, err := d.rt.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: p.container, Verbose: true})
		if err != nil {
			return err
		}
		calls := []string{"RunPodSandbox", "CreateContainer", "StartContainer"}
		var all []timeline
		for _, info := range []string{sb.Info["info"], ctr.Info["info"]} {
			var v struct{ Operations []timeline }
			if err := json.Unmarshal([]byte(info), &v); err != nil {
				return fmt.Errorf("verbose status: %w", err)
			}
			all = append(all, v.Operations...)
		}
		if len(all) != len(calls) {
			return fmt.Errorf("verbose status: %d operations, not %d", len(all), len(calls))
		}
		for i, call := range calls {
			for _, st := range all[i].Stages {
				record(&r.Spans, call+": "+st.Name, ms(st.Duration))
			}
			for _, p := range all[i].Parts {
				record(&r.Spans, call+within+p.Name, ms(p.Duration))
			}
			record(&r.Spans, call+": before and after", ms(took[call]-all[i].Total))
			record(&r.Spans, call, ms(took[call]))
			r.SpanOrder = spanOrder(call, all[i], r.SpanOrder)
		}
		if err := d.end(ctx, p, nil); err != nil {
			return err
		}
	}
	return nil
}

// spanOrder adds a call's rows to the order of rows, once.
func spanOrder(call string, t timeline, order []string) []string {
	for _, o := range order {
		if o == call {
			return order
		}
	}
	order = append(order, call)
	for _, st := range t.Stages {
		order = append(order, call+": "+st.Name)
	}
	for _, p := range t.Parts {
		order = append(order, call+within+p.Name)
	}
	return append(order, call+": before and after")
}
