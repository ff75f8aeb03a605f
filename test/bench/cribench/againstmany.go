package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"
)

// growing starts pods by turns, and leaves them: as many of each side as in a run of one, so that the machine has twice as many.
// The first and the last of them are told apart.
func growing(ctx context.Context, sides []*side) error {
	sides = slices.Clone(sides)
	n := slices.Max(sides[0].o.size.Grow)
	for i := range n {
		for _, x := range sides {
			number, before := x.d.next(), x.d.group.cpu()
			_, err := x.d.begin(ctx, number, limits{}, func(call string, took time.Duration) {
				if i < window {
					record(&x.first, call, ms(took))
				} else if i >= n-window {
					record(&x.last, call, ms(took))
				}
			})
			if err != nil {
				return fmt.Errorf("%s, pod %d: %w", x.name, i+1, err)
			}
			if used := ms(x.d.group.cpu() - before); i < window {
				record(&x.first, cpuOf, used)
			} else if i >= n-window {
				record(&x.last, cpuOf, used)
			}
		}
		slices.Reverse(sides)
	}
	return nil
}

// cpuOf is the name of what pods' starts used.
const cpuOf = podStart + ", CPU"

// listingBoth fills both sides with as many containers as lists are measured with, and calls the lists of each by turns.
func listingBoth(ctx context.Context, sides []*side) error {
	sides = slices.Clone(sides)
	want := slices.Max(sides[0].o.size.Lists)
	for _, x := range sides {
		if err := x.d.fill(ctx, want); err != nil {
			return fmt.Errorf("%s: %w", x.name, err)
		}
	}
	settle(ctx, rest)
	for range 50 {
		for i := range sides[0].d.listCalls(want) {
			for _, x := range sides {
				before := x.d.group.cpu()
				err := x.d.listCalls(want)[i].do(ctx, func(call string, took time.Duration) {
					record(&x.lists, call, ms(took))
					record(&x.lists, call+", CPU", ms(x.d.group.cpu()-before))
				})
				if err != nil {
					return fmt.Errorf("%s: %w", x.name, err)
				}
			}
		}
		slices.Reverse(sides)
	}
	return nil
}

// compareMany prints what growing and listingBoth found.
func compareMany(w io.Writer, sides []*side) {
	row := func(name string, of func(*side) *samples) {
		if of(sides[0]) == nil || of(sides[1]) == nil {
			return
		}
		text := func(x *side) string {
			s := of(x)
			return fmt.Sprintf("%.2f / %.2f / %.2f", s.at(50), s.at(0), s.at(99))
		}
		fmt.Fprintf(w, "%-44s %22s %22s\n", name+" (p50 / min / p99)", text(sides[0]), text(sides[1]))
	}
	for _, call := range append([]string{cpuOf}, calls...) {
		row(call+", first", func(x *side) *samples { return x.first[call] })
		row(call+", last", func(x *side) *samples { return x.last[call] })
	}
	for _, c := range sides[0].d.listCalls(0) {
		row(c.name, func(x *side) *samples { return x.lists[c.name] })
		row(c.name+", CPU", func(x *side) *samples { return x.lists[c.name+", CPU"] })
	}
}
