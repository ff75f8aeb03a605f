package main

import (
	"fmt"
	"strings"
)

// profileSection tells where the CPU of a pod start goes, and what parallel ones wait for.
func profileSection(r *results) string {
	var s strings.Builder
	for _, t := range r.Targets {
		p := t.Profiles
		if p == nil {
			continue
		}
		fmt.Fprintf(&s, "\n## The profile of a pod start\n\nOf %s, in the same run. %d pods one after the other take %s ms of CPU each: %s ms in programs, %s ms in the kernel (%.0f %%)",
			t.Target, p.Pods, figure(p.User+p.System), figure(p.User), figure(p.System), 100*p.System/(p.User+p.System))
		if len(p.Programs) > 0 {
			s.WriteString(", with perf(1) looking on, which is in these figures")
		}
		s.WriteString(".\n")
		stages(&s, t)
		writeShares(&s, "CPU by program, and where", "% of samples", p.Programs)
		writeShares(&s, "CPU in the kernel, by function", "% of all samples", p.Kernel)
		writeShares(&s, "CPU of cri-server in pod starts, by its innermost function", "% of cri-server's", p.Daemon)
		writeShares(&s, fmt.Sprintf("%d pods, 8 at a time: for locks, by who held them", p.Waits), "ms of others' waiting per pod", p.Mutex)
		writeShares(&s, fmt.Sprintf("%d pods, 8 at a time: what was waited for, by who waited; the time of other goroutines' work, and of cri-monitor's, is in it", p.Waits), "ms per pod", p.Block)
	}
	return s.String()
}

// stages are those of the calls, by how much of the whole start they are.
func stages(s *strings.Builder, t *result) {
	var parts []share
	whole := 0.0
	for _, name := range t.SpanOrder {
		if strings.Contains(name, ": ") {
			parts = append(parts, share{name, t.Spans[name].at(50)})
			if !strings.Contains(name, within) {
				whole += t.Spans[name].at(50)
			}
		}
	}
	var kept []share
	for _, x := range parts {
		if x.Part = 100 * x.Part / whole; x.Part >= 1 {
			kept = append(kept, x)
		}
	}
	writeShares(s, "Time by stage, one pod after the other", "% of the sum of p50", kept)
}

func writeShares(s *strings.Builder, title, unit string, shares []share) {
	if len(shares) == 0 {
		return
	}
	fmt.Fprintf(s, "\n| %s | %s |\n|---|--:|\n", title, unit)
	for _, x := range shares {
		fmt.Fprintf(s, "| `%s` | %s |\n", x.Name, figure(x.Part))
	}
}
