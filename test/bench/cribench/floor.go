package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
)

// floor is what the kernel alone takes for a pod: see test/bench/floor.
type floor struct {
	Start samples `json:"start_ms"`
	CPU   samples `json:"start_cpu_ms"`
	End   samples `json:"end_ms"`
}

// measureFloor runs the C program for some rounds in a cgroup of its own.
func (r *results) measureFloor(ctx context.Context, o options) error {
	g, err := newGroup(parent() + "/floor")
	if err != nil {
		return err
	}
	script := `echo $$ >"$0" && exec "$@"`
	c := exec.CommandContext(ctx, "/bin/sh", "-c", script, g.procs(), o.bin("peers/floor"), o.dir, g.path, fmt.Sprint(max(10, o.size.Cycles)))
	out, err := c.Output()
	g.kill()
	if err != nil {
		return fmt.Errorf("floor: %w: %s", err, out)
	}
	if r.Floor == nil {
		r.Floor = &floor{}
	}
	var rounds []struct{ Start, CPU, End float64 }
	if err := json.Unmarshal(out, &rounds); err != nil {
		return fmt.Errorf("floor: %w: %s", err, out)
	}
	for _, x := range rounds[min(2, len(rounds)):] {
		r.Floor.Start.add(x.Start)
		r.Floor.CPU.add(x.CPU)
		r.Floor.End.add(x.End)
	}
	return g.remove()
}
