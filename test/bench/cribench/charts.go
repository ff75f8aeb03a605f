package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
)

// chart is a picture of the page.
type chart struct{ file, title string }

var pictures = []chart{{"pod-start.svg", "Pod start"}, {"exec.svg", "ExecSync"}, {"pod-end.svg", "Pod stop and removal"},
	{"limit.svg", "Pod start with a CPU limit of 100 m"}, {"cpu.svg", "CPU of a pod's life"}, {"floor.svg", "CPU of a pod start, by the floor's"},
	{"memory.svg", "Memory per pod"}, {"parallel.svg", "Pods started per second"}, {"parallel-end.svg", "Pods stopped and removed per second"},
	{"growth.svg", "Pod start as pods get more"}, {"lists.svg", "ListContainerStats"}, {"probes.svg", "CPU of 100 exec probes a second"},
	{"logs.svg", "Log of a container"}, {"restart.svg", "From the daemon's start to serving"}}

// charts writes those pictures for which there are figures.
func charts(dir string, r *results) error {
	text := map[string]string{}
	titles := map[string]string{}
	for _, p := range pictures {
		titles[p.file] = p.title
	}
	draw := func(file, unit string, of func(t *result) (bar, bool)) {
		var list []bar
		for _, t := range r.Targets {
			if b, ok := of(t); ok && !math.IsNaN(b.value) {
				list = append(list, b)
			}
		}
		if len(list) > 0 {
			text[file] = bars(titles[file], unit, list)
		}
	}
	timed := func(of func(t *result) *samples) func(t *result) (bar, bool) {
		return func(t *result) (bar, bool) {
			s := of(t)
			return bar{t.Target, s.at(50), s.at(95)}, s != nil
		}
	}
	for file, call := range map[string]string{"pod-start.svg": podStart, "exec.svg": "ExecSync", "pod-end.svg": podEnd, "limit.svg": podStart + ", 100 m CPU limit"} {
		draw(file, "ms", timed(func(t *result) *samples { return t.Calls[call] }))
	}
	draw("cpu.svg", "CPU ms", timed(func(t *result) *samples { return t.CPU[podLife] }))
	if r.Floor != nil {
		draw("floor.svg", "times the CPU of the same done by a bare C program", func(t *result) (bar, bool) {
			s, floor := t.CPU[podStart], r.Floor.CPU.at(50)
			return bar{t.Target, s.at(50) / floor, s.at(95) / floor}, s != nil
		})
	}
	single(draw)
	curved(r, titles, text)
	for name, s := range text {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(s), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// single draws what is one figure of each.
func single(draw func(file, unit string, of func(t *result) (bar, bool))) {
	draw("memory.svg", "KiB Pss outside the pod's own programs, and growth of the daemon; in brackets: pods", func(t *result) (bar, bool) {
		if len(t.Memory) == 0 {
			return bar{}, false
		}
		m := t.Memory[len(t.Memory)-1]
		return bar{name: fmt.Sprintf("%s (%d)", t.Target, m.Pods), value: m.PerPod + max(0, m.Growth)}, true
	})
	draw("lists.svg", "ms, to p99; in brackets: containers", func(t *result) (bar, bool) {
		if len(t.Lists) == 0 {
			return bar{}, false
		}
		l := t.Lists[len(t.Lists)-1]
		s := l.Calls["ListContainerStats"]
		return bar{fmt.Sprintf("%s (%d)", t.Target, l.Containers), s.at(50), s.at(99)}, s != nil
	})
	draw("probes.svg", "cores", func(t *result) (bar, bool) {
		if t.Probes == nil {
			return bar{}, false
		}
		return bar{name: fmt.Sprintf("%s (%.0f/s)", t.Target, t.Probes.Reached), value: t.Probes.Cores}, true
	})
	draw("logs.svg", "MB/s", func(t *result) (bar, bool) {
		if t.Logs == nil {
			return bar{}, false
		}
		return bar{name: t.Target, value: t.Logs.MBPerS}, true
	})
	draw("restart.svg", "ms; in brackets: pods", func(t *result) (bar, bool) {
		var with *restart
		for i, x := range t.Restarts {
			if with == nil || x.Pods <= restartGoal {
				with = &t.Restarts[i]
			}
		}
		if with == nil {
			return bar{}, false
		}
		return bar{name: fmt.Sprintf("%s (%d)", t.Target, with.Pods), value: with.MS}, true
	})
}

// curved draws what depends on how many there are.
func curved(r *results, titles map[string]string, text map[string]string) {
	var starts, ends, grown []line
	for _, t := range r.Targets {
		start, end, g := line{name: t.Target}, line{name: t.Target}, line{name: t.Target}
		for i := range t.Parallel {
			p := &t.Parallel[i]
			start.point(float64(p.Workers), p.Start.mean(), p.Start.at(0), p.Start.at(100))
			end.point(float64(p.Workers), p.End.mean(), p.End.at(0), p.End.at(100))
		}
		for _, x := range t.Growth {
			g.point(float64(x.Pods), x.P50, x.P50, x.P95)
		}
		starts, ends, grown = append(starts, start), append(ends, end), append(grown, g)
	}
	add := func(file, x, y string, list []line) {
		if len(list) > 0 && len(list[0].x) > 0 {
			text[file] = curves(titles[file], x, y, list)
		}
	}
	add("parallel.svg", "pods started at a time", "pods per s; line: slowest to fastest pass", starts)
	add("parallel-end.svg", "pods ended at a time", "pods per s; line: slowest to fastest pass", ends)
	add("growth.svg", "pods there are", "ms, p50 of the last pods; line: to p95", grown)
}

func (l *line) point(x, y, low, high float64) {
	l.x, l.y, l.low, l.high = append(l.x, x), append(l.y, y), append(l.low, low), append(l.high, high)
}
