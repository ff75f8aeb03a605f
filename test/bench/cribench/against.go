package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// against measures cri-server of another tree beside this one's: both run at once, each with a bridge of its own, and take
// turns pod by pod, so that what else happens on the machine hits both alike. A pass is a fresh start of both.
func against(ctx context.Context, o options, other string) (err error) {
	list, err := chosen(o)
	if err != nil {
		return err
	}
	for _, dir := range []string{"/etc", "/opt", "/var/lib", "/var/log"} {
		if err := shield(dir); err != nil {
			return err
		}
	}
	s, err := serve(o)
	if err != nil {
		return err
	}
	defer s.Close()
	old := o
	old.repo = other
	sides := []*side{{o: old, name: "other"}, {o: o, name: "this"}}
	for i, x := range sides {
		if x.d, err = newDaemon(x.o, list[0], i); err != nil {
			return err
		}
	}
	fmt.Fprintf(os.Stderr, "load %s before\n", load())
	for pass := range o.size.Passes {
		if err = round(ctx, sides, pass); err != nil {
			break
		}
	}
	fmt.Fprintf(os.Stderr, "load %s after\n", load())
	for _, x := range sides {
		err = errors.Join(err, x.d.group.remove())
	}
	err = errors.Join(err, (&group{path: parent()}).remove())
	compare(os.Stdout, sides)
	compareMany(os.Stdout, sides)
	return err
}

// side is one of the two that are compared.
type side struct {
	name string
	o    options
	d    *daemon
	r    result

	first, last map[string]*samples // pods' starts, when there were few and when there were many
	lists       map[string]*samples
}

func round(ctx context.Context, sides []*side, pass int) (err error) {
	defer func() {
		for _, x := range sides {
			err = errors.Join(err, x.d.stop(ctx))
		}
	}()
	for _, x := range sides {
		if _, err := x.d.start(ctx); err != nil {
			return err
		}
		if err := x.d.warm(ctx); err != nil {
			return err
		}
	}
	one := sides[0].o.size
	one.Cycles = 1
	sides = slices.Clone(sides)
	if pass == 0 && sides[1].o.profile != "" {
		defer sides[1].profiled(ctx, time.Duration(sides[0].o.size.Cycles)*40*time.Millisecond)()
	}
	if slices.Contains(sides[0].o.phases, "latency") {
		for range sides[0].o.size.Cycles {
			for _, x := range sides {
				if err := latency(ctx, x.d, one, &x.r); err != nil {
					return fmt.Errorf("%s: %w", x.name, err)
				}
			}
			slices.Reverse(sides)
		}
	}
	if slices.Contains(sides[0].o.phases, "sandboxes") {
		for range sides[0].o.size.Cycles {
			for _, x := range sides {
				if err := sandboxes(ctx, x.d, &x.r); err != nil {
					return fmt.Errorf("%s: %w", x.name, err)
				}
			}
			slices.Reverse(sides)
		}
	}
	if slices.Contains(sides[0].o.phases, "execs") {
		if err := execs(ctx, sides); err != nil {
			return err
		}
	}
	if slices.Contains(sides[0].o.phases, "spans") {
		for _, x := range sides {
			if err := spans(ctx, x.d, one, &x.r); err != nil {
				return fmt.Errorf("%s: %w", x.name, err)
			}
		}
	}
	if slices.Contains(sides[0].o.phases, "parallel") {
		for range 2 {
			for _, x := range sides {
				if err := parallelism(ctx, x.d, x.o.size, &x.r); err != nil {
					return fmt.Errorf("%s: %w", x.name, err)
				}
			}
			slices.Reverse(sides)
		}
	}
	if slices.Contains(sides[0].o.phases, "grow") {
		if err := growing(ctx, sides); err != nil {
			return err
		}
	}
	if slices.Contains(sides[0].o.phases, "lists") {
		return listingBoth(ctx, sides)
	}
	return nil
}

// sandboxes runs, stops and removes a pod without containers.
func sandboxes(ctx context.Context, d *daemon, r *result) error {
	var before time.Duration
	m := meter(func(call string, took time.Duration) {
		now := d.group.cpu()
		record(&r.Calls, call, ms(took))
		record(&r.CPU, call, ms(now-before))
		before = now
	})
	number := d.next()
	defer d.group.removePod(podName(number))
	before = d.group.cpu()
	p, err := d.sandbox(ctx, number, m)
	if err != nil {
		return err
	}
	err = m.do("StopPodSandbox", func() error {
		_, err := d.rt.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id})
		return err
	})
	if err != nil {
		return err
	}
	return m.do("RemovePodSandbox", func() error {
		_, err := d.rt.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id})
		return err
	})
}

// execs runs programs in one container of each side, by turns and ten times as many as pods.
func execs(ctx context.Context, sides []*side) error {
	sides = slices.Clone(sides)
	pods := map[*side]*pod{}
	for _, x := range sides {
		p, err := x.d.begin(ctx, x.d.next(), limits{}, nil)
		if err != nil {
			return fmt.Errorf("%s: %w", x.name, err)
		}
		pods[x] = p
	}
	settle(ctx, rest)
	for range 10 * sides[0].o.size.Cycles {
		for _, x := range sides {
			before := x.d.group.cpu()
			err := meter(func(call string, took time.Duration) {
				record(&x.r.Calls, call, ms(took))
				record(&x.r.CPU, call, ms(x.d.group.cpu()-before))
			}).do("ExecSync", func() error { return x.d.exec(ctx, pods[x].container) })
			if err != nil {
				return fmt.Errorf("%s: %w", x.name, err)
			}
		}
		slices.Reverse(sides)
	}
	for x, p := range pods {
		if err := x.d.end(ctx, p, nil); err != nil {
			return fmt.Errorf("%s: %w", x.name, err)
		}
	}
	return nil
}

// profiled saves a CPU profile of the next while; what it returns waits for its end.
func (x *side) profiled(ctx context.Context, length time.Duration) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := x.d.saveProfile(ctx, "cpu", fmt.Sprintf("profile?seconds=%d", max(1, int(length.Seconds())))); err != nil {
			fmt.Fprintln(os.Stderr, "cribench:", err)
		}
	}()
	return func() { <-done }
}

// compare prints the two beside each other.
func compare(w io.Writer, sides []*side) {
	fmt.Fprintf(w, "%-44s %22s %22s\n", "", "other", "this")
	row := func(name string, of func(*side) string) {
		fmt.Fprintf(w, "%-44s %22s %22s\n", name, of(sides[0]), of(sides[1]))
	}
	for _, c := range calls {
		if sides[0].r.Calls[c] == nil {
			continue
		}
		row(c+" (ms, p50 / min)", func(x *side) string {
			return fmt.Sprintf("%.2f / %.2f", x.r.Calls[c].at(50), x.r.Calls[c].at(0))
		})
	}
	for _, c := range append([]string{podLife}, calls...) {
		if sides[0].r.CPU[c] == nil {
			continue
		}
		row(c+" (CPU ms, mean / p50 / min)", func(x *side) string {
			return fmt.Sprintf("%.2f / %.2f / %.2f", x.r.CPU[c].mean(), x.r.CPU[c].at(50), x.r.CPU[c].at(0))
		})
	}
	for _, name := range sides[1].r.SpanOrder {
		row(name+" (ms)", func(x *side) string { return fmt.Sprintf("%.2f / %.2f", x.r.Spans[name].at(50), x.r.Spans[name].at(0)) })
	}
	for i, p := range sides[0].r.Parallel {
		row(fmt.Sprintf("pods/s, %d at a time (p50 / max)", p.Workers), func(x *side) string {
			return fmt.Sprintf("%.0f / %.0f", x.r.Parallel[i].Start.at(50), x.r.Parallel[i].Start.at(100))
		})
		row(fmt.Sprintf("ends/s, %d at a time (p50 / max)", p.Workers), func(x *side) string {
			return fmt.Sprintf("%.0f / %.0f", x.r.Parallel[i].End.at(50), x.r.Parallel[i].End.at(100))
		})
		for _, c := range calls {
			if p.Calls[c] == nil {
				continue
			}
			row(fmt.Sprintf("%s, %d at a time (ms, p50 / min)", c, p.Workers), func(x *side) string {
				return fmt.Sprintf("%.2f / %.2f", x.r.Parallel[i].Calls[c].at(50), x.r.Parallel[i].Calls[c].at(0))
			})
		}
	}
}
