package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// row is a line of the tables: what was measured and of each target a figure.
type row struct {
	name   string
	unit   string
	values []string
}

// grid is a table.
type grid struct {
	title string
	rows  []row
}

// figure is a number as people want it: three digits.
func figure(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return "–"
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// three is p50 with p95 and p99.
func three(s *samples) string {
	if s == nil {
		return "–"
	}
	return figure(s.at(50)) + " / " + figure(s.at(95)) + " / " + figure(s.at(99))
}

// calls are the rows of single calls, in the order of a pod's life.
var calls = []string{podStart, "RunPodSandbox", "CreateContainer", "StartContainer", "ExecSync", podEnd, "StopContainer", "RemoveContainer",
	"StopPodSandbox", "RemovePodSandbox", podStart + ", 100 m CPU limit"}

// grids are the tables of a run; those of phases that did not run are left out.
func grids(r *results) []grid {
	var all []grid
	add := func(title string, rows ...row) {
		var kept []row
		for _, x := range rows {
			if strings.Trim(strings.Join(x.values, ""), "–") != "" {
				kept = append(kept, x)
			}
		}
		if len(kept) > 0 {
			all = append(all, grid{title, kept})
		}
	}
	of := func(name, unit string, f func(t *result) string) row {
		x := row{name: name, unit: unit}
		for _, t := range r.Targets {
			x.values = append(x.values, f(t))
		}
		return x
	}
	var rows []row
	for _, c := range calls {
		rows = append(rows, of(c, "ms, p50 / p95 / p99", func(t *result) string { return three(t.Calls[c]) }))
	}
	add("One after the other", rows...)
	rows = nil
	for _, c := range append([]string{podStart, podEnd, podLife}, slices.DeleteFunc(slices.Clone(calls[1:10]), func(c string) bool { return c == podEnd })...) {
		rows = append(rows, of(c, "CPU ms, mean", func(t *result) string { return figure(t.CPU[c].mean()) }))
	}
	rows = append(rows, of("pod life: systemd and its bus beside it", "CPU ms, mean", func(t *result) string { return figure(t.CPU[systemdCPU].mean()) }),
		of("pod life: method calls to systemd", "per pod", func(t *result) string { return figure(t.CPU[systemdCalls].mean()) }),
		of("pod life: jobs of systemd", "per pod", func(t *result) string { return figure(t.CPU[systemdJobs].mean()) }))
	if r.Floor != nil {
		rows = append(rows, of("CPU of pod start, by the floor's", "x", func(t *result) string { return figure(t.CPU[podStart].mean() / r.Floor.CPU.mean()) }))
		rows = append(rows, of("p50 of pod start, by the floor's", "x", func(t *result) string { return figure(t.Calls[podStart].at(50) / r.Floor.Start.at(50)) }))
	}
	add("CPU time of runtime, its children and the pod", rows...)
	add("In parallel", parallelRows(r, of)...)
	add("As pods get more", densityRows(r, of)...)
	add("Lists", listRows(r, of)...)
	add("More", moreRows(of)...)
	add("Where a pod's start goes", spanRows(r, of)...)
	return all
}

type ofTargets func(name, unit string, f func(t *result) string) row

func parallelRows(r *results, of ofTargets) []row {
	var rows []row
	for i, w := range r.Size.Workers {
		get := func(f func(p *parallel) string) func(t *result) string {
			return func(t *result) string {
				if i >= len(t.Parallel) {
					return "–"
				}
				return f(&t.Parallel[i])
			}
		}
		rows = append(rows,
			of(fmt.Sprintf("pods started, %d at a time", w), "per s, mean", get(func(p *parallel) string { return figure(p.Start.mean()) })),
			of(fmt.Sprintf("pods stopped and removed, %d at a time", w), "per s, mean", get(func(p *parallel) string { return figure(p.End.mean()) })))
		for _, c := range []string{podStart, "StopContainer", "RemoveContainer", podEnd} {
			rows = append(rows, of(fmt.Sprintf("%s, %d at a time", c, w), "ms, p50 / p95 / p99", get(func(p *parallel) string { return three(p.Calls[c]) })))
		}
	}
	return rows
}

func densityRows(r *results, of ofTargets) []row {
	var rows []row
	for _, n := range r.Size.Grow {
		find := func(f func(g growth) string) func(t *result) string {
			return func(t *result) string {
				for _, g := range t.Growth {
					if g.Pods == n {
						return f(g)
					}
				}
				return "–"
			}
		}
		rows = append(rows, of(fmt.Sprintf("pod start, the last up to %d pods", n), "ms, p50 / p95", find(func(g growth) string { return figure(g.P50) + " / " + figure(g.P95) })))
	}
	for _, n := range r.Size.Grow {
		find := func(f func(m memory) float64) func(t *result) string {
			return func(t *result) string {
				for _, m := range t.Memory {
					if m.Pods == n {
						if v := f(m); v >= 0 {
							return figure(v)
						}
					}
				}
				return "–"
			}
		}
		rows = append(rows,
			of(fmt.Sprintf("%d pods: processes beside the pod's own", n), "KiB Pss per pod", find(func(m memory) float64 { return m.PerPod })),
			of(fmt.Sprintf("%d pods: growth of the daemon (and monitor)", n), "KiB Pss per pod", find(func(m memory) float64 { return max(0, m.Growth) })),
			of(fmt.Sprintf("%d pods: daemon (and monitor)", n), "MB Pss", find(func(m memory) float64 { return m.Daemon / 1024 })),
			of(fmt.Sprintf("%d pods: kernel memory of the pods' cgroup", n), "KiB per pod", find(func(m memory) float64 { return m.Kernel })))
	}
	return rows
}

// spanRows are the stages that cri-server tells, in the order of the first target that tells any.
func spanRows(r *results, of ofTargets) []row {
	var rows []row
	seen := map[string]bool{}
	for _, t := range r.Targets {
		for _, name := range t.SpanOrder {
			if seen[name] {
				continue
			}
			seen[name] = true
			rows = append(rows, of(name, "ms, p50 / p95 / p99", func(t *result) string { return three(t.Spans[name]) }))
		}
	}
	return rows
}

func listRows(r *results, of ofTargets) []row {
	var rows []row
	var marks []int
	for _, t := range r.Targets {
		for _, l := range t.Lists {
			seen := false
			for _, m := range marks {
				seen = seen || m == l.Containers
			}
			if !seen {
				marks = append(marks, l.Containers)
			}
		}
	}
	for _, n := range marks {
		for _, c := range []string{"ListContainers", "ListPodSandbox", "ListContainerStats", "ListPodSandboxStats"} {
			rows = append(rows, of(fmt.Sprintf("%s, %d containers", c, n), "ms, p50 / p99", func(t *result) string {
				for _, l := range t.Lists {
					if s := l.Calls[c]; l.Containers == n && s != nil {
						return figure(s.at(50)) + " / " + figure(s.at(99))
					}
				}
				return "–"
			}))
		}
	}
	return rows
}

func moreRows(of ofTargets) []row {
	probe := func(f func(p *probes) string) func(t *result) string {
		return func(t *result) string {
			if t.Probes == nil {
				return "–"
			}
			return f(t.Probes)
		}
	}
	log := func(f func(l *logs) float64) func(t *result) string {
		return func(t *result) string {
			if t.Logs == nil {
				return "–"
			}
			return figure(f(t.Logs))
		}
	}
	rows := []row{
		of("100 exec probes a second: reached", "per s", probe(func(p *probes) string { return figure(p.Reached) })),
		of("100 exec probes a second: CPU", "cores", probe(func(p *probes) string { return figure(p.Cores) })),
		of("100 exec probes a second: latency", "ms, p50 / p99", probe(func(p *probes) string { return figure(p.P50) + " / " + figure(p.P99) })),
		of("log of a container", "MB/s", log(func(l *logs) float64 { return l.MBPerS })),
		of("log of a container: CPU", "s per GB", log(func(l *logs) float64 { return l.CPUPerGB })),
	}
	for _, what := range []string{"daemon", "monitor"} {
		rows = append(rows, of("idle with many containers: "+what, "% of a core", func(t *result) string {
			switch {
			case t.Idle == nil:
				return "–"
			case what == "daemon":
				return figure(t.Idle.Daemon)
			}
			return figure(t.Idle.Monitor)
		}))
	}
	pods := map[int]bool{}
	for _, n := range slices.Concat(full.Restarts, full.RestartsPeers, quick.Restarts) {
		if pods[n] {
			continue
		}
		pods[n] = true
		rows = append(rows, of(fmt.Sprintf("restart to serving %d pods", n), "ms, median of 3", func(t *result) string {
			for _, x := range t.Restarts {
				if x.Pods == n {
					return figure(x.MS)
				}
			}
			return "–"
		}))
	}
	for _, what := range []string{"start execs", "end execs", "start syncs", "end syncs"} {
		rows = append(rows, of("pod "+what, "per pod", func(t *result) string {
			if t.Syscalls == nil {
				return "–"
			}
			return figure(t.Syscalls[what])
		}))
	}
	return rows
}

// table writes all for a terminal.
func table(w io.Writer, r *results) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, g := range grids(r) {
		fmt.Fprintf(t, "\n%s\t", strings.ToUpper(g.title))
		for _, x := range r.Targets {
			fmt.Fprintf(t, "%s\t", x.Target)
		}
		fmt.Fprintln(t)
		for _, x := range g.rows {
			fmt.Fprintf(t, "%s (%s)\t%s\t\n", x.name, x.unit, strings.Join(x.values, "\t"))
		}
	}
	if f := r.Floor; f != nil {
		fmt.Fprintf(t, "\nFLOOR\tpod start %s ms, CPU %s ms, end %s ms\n", three(&f.Start), figure(f.CPU.mean()), three(&f.End))
	}
	fmt.Fprintf(t, "\nload %s -> %s, %.0f s\n", r.Load[0], r.Load[1], r.Took)
	for _, x := range r.Targets {
		for _, e := range x.Errors {
			fmt.Fprintf(t, "FAILED %s: %s\n", x.Target, e)
		}
	}
	return t.Flush()
}
