package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// share is a part of something that was profiled.
type share struct {
	Name string  `json:"name"`
	Part float64 `json:"part"` // percent, or ms per pod
}

// ownPrefix is how functions of this module are named in a Go profile.
const ownPrefix = "github.com/seed-9a14075a/cri-server/"

// trace is a stack of a Go profile, the innermost function first.
type trace struct {
	value float64 // in the unit asked for
	stack []string
}

// traces reads a Go profile, in ms, by `go tool pprof`.
func traces(ctx context.Context, file string) ([]trace, error) {
	c := exec.CommandContext(ctx, "go", "tool", "pprof", "-symbolize=none", "-traces", "-unit=ms", file)
	var said bytes.Buffer
	c.Stderr = &said
	out, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("go tool pprof %s: %w: %s", file, err, said.String())
	}
	return parseTraces(out), nil
}

// parseTraces reads what `go tool pprof -traces` prints: stacks between lines of dashes, the value before the first function.
func parseTraces(out []byte) (list []trace) {
	var t *trace
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		l := s.Text()
		if strings.HasPrefix(l, "-----------+") {
			list = append(list, trace{})
			t = &list[len(list)-1]
			continue
		}
		f := strings.Fields(strings.TrimSuffix(l, " (inline)"))
		if t == nil || len(f) == 0 || len(t.stack) == 0 && len(f) < 2 {
			continue
		}
		if len(t.stack) == 0 {
			v, err := strconv.ParseFloat(strings.TrimSuffix(f[0], "ms"), 64)
			if err != nil {
				continue // a label
			}
			t.value, f = v, f[1:]
		}
		t.stack = append(t.stack, f[0])
	}
	return slices.DeleteFunc(list, func(t trace) bool { return len(t.stack) == 0 })
}

// own is the innermost function of this module on the stack, which the time is put down to; "" for none.
func (t trace) own() string {
	for _, f := range t.stack {
		if name, ok := strings.CutPrefix(f, ownPrefix); ok {
			return name
		}
	}
	return ""
}

// has tells whether a function whose name contains one of the words is on the stack.
func (t trace) has(words ...string) bool {
	return slices.ContainsFunc(t.stack, func(f string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(f, w) })
	})
}

// top adds up by name, and returns the largest sums, times factor, down to least.
func top(list []trace, name func(trace) string, factor float64, most int, least float64) (out []share) {
	sums := map[string]float64{}
	for _, t := range list {
		if n := name(t); n != "" {
			sums[n] += t.value * factor
		}
	}
	for n, v := range sums {
		if v >= least {
			out = append(out, share{n, v})
		}
	}
	slices.SortFunc(out, func(a, b share) int {
		switch {
		case a.Part > b.Part, a.Part == b.Part && a.Name < b.Name:
			return -1
		}
		return 1
	})
	return out[:min(most, len(out))]
}
