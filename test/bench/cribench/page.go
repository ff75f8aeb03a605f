package main

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// page writes what people read: how it was measured, pictures, tables.
func page(name, dir string, r *results) error {
	var s strings.Builder
	kind := "full"
	if r.Quick {
		kind = "quick"
	}
	fmt.Fprintf(&s, "# Benchmarks\n\n<!-- Written by test/bench/cribench from results.json; run `make bench` to write it anew. -->\n\n")
	fmt.Fprintf(&s, "cri-server beside containerd and CRI-O, through the CRI, on one machine: a %s run of %s, `%s`.\n\n", kind, r.Time.UTC().Format("2006-01-02"), r.Command)
	var m []string
	for _, k := range slices.Sorted(maps.Keys(r.Machine)) {
		m = append(m, k+" "+r.Machine[k])
	}
	fmt.Fprintf(&s, "- Machine: %s; load average %s before, %s after. Other work on the machine is in these figures: trust ratios and CPU more than times.\n", strings.Join(m, ", "), r.Load[0], r.Load[1])
	fmt.Fprintf(&s, "- %d passes in which the runtimes take turns, each alone and freshly started: %d pods one after the other per pass; in parallel %d per worker, %d of runtimes that take long, after a second in which nothing is asked.\n", r.Size.Passes, r.Size.Cycles, r.Size.PerWorker, cmp.Or(r.Size.PeersWorker, r.Size.PerWorker))
	s.WriteString("- The same image (busybox), registry, CNI configuration and plugins, RuntimeDefault seccomp, cgroupfs for all. A pod has one container that waits, and a parent cgroup of its own that is there before, as kubelet makes it.\n" +
		"- CPU is what the runtime, all it started and the pod used, counted by the kernel for a cgroup around them. What kernel threads do later, such as tearing down namespaces, is not in it.\n" +
		"- The floor is a bare C program that makes the same namespaces, mounts and cgroups and executes the same programs, without network, seccomp, log, records and RPC (test/bench/floor).\n\n")
	s.WriteString("| | version | pod network | on disk when a call returns |\n|---|---|---|---|\n")
	for _, t := range r.Targets {
		fmt.Fprintf(&s, "| %s | %s | %s | %s |\n", t.Target, t.Version, t.Network, t.Sync)
	}
	for _, p := range pictures {
		file := filepath.Join(dir, p.file)
		if _, err := os.Stat(file); err != nil {
			continue
		}
		rel, err := filepath.Rel(filepath.Dir(name), file)
		if err != nil {
			return err
		}
		fmt.Fprintf(&s, "\n![%s](%s)\n", p.title, rel)
	}
	s.WriteString(goalsSection(r))
	writeGrids(&s, "##", r)
	if f := r.Floor; f != nil {
		fmt.Fprintf(&s, "\nThe floor: pod start %s ms (p50 / p95 / p99), CPU %s ms, end %s ms.\n", three(&f.Start), figure(f.CPU.mean()), three(&f.End))
	}
	s.WriteString(profileSection(r) + failures(r))
	if b, err := os.ReadFile(filepath.Join(dir, "tried.md")); err == nil { // written by hand: what was tried where a goal is missed
		s.WriteString("\n")
		s.Write(b)
	}
	s.WriteString(systemdSection(dir))
	if b, err := os.ReadFile(filepath.Join(dir, "pulls.md")); err == nil { // of pullbench
		s.WriteString("\n" + string(b))
	}
	return os.WriteFile(name, []byte(s.String()), 0o644)
}

// writeGrids writes the tables of r.
func writeGrids(s *strings.Builder, heading string, r *results) {
	for _, g := range grids(r) {
		fmt.Fprintf(s, "\n%s %s\n\n| | |", heading, g.title)
		for _, t := range r.Targets {
			fmt.Fprintf(s, " %s |", t.Target)
		}
		s.WriteString("\n|---|---|" + strings.Repeat("--:|", len(r.Targets)) + "\n")
		for _, x := range g.rows {
			fmt.Fprintf(s, "| %s | %s | %s |\n", x.name, x.unit, strings.Join(x.values, " | "))
		}
	}
}

// failures tells what of r failed; "" for nothing.
func failures(r *results) string {
	failed := ""
	for _, t := range r.Targets {
		for _, e := range t.Errors {
			failed += fmt.Sprintf("- %s: %s\n", t.Target, strings.ReplaceAll(e, "\n", " "))
		}
	}
	if failed == "" {
		return ""
	}
	return "\nWhat failed:\n\n" + failed
}
