package main

import (
	"fmt"
	"io"
	"slices"
	"time"
)

// printTable writes a Markdown table: median [minimum] in ms, and how many times the first engine's medians that is.
func printTable(w io.Writer, title string, names []string, samples map[string][]sample) {
	fmt.Fprintf(w, "\n%s; ms, median [min]; ×: against %s\n\n", title, names[0])
	fmt.Fprintln(w, "| engine | create+start | × | CPU | × | exec(true) | × | CPU | × | delete | × | CPU | × |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|---|---|---|---|---|---|---|")
	steps := []func(sample) cost{
		func(s sample) cost { return s.start }, func(s sample) cost { return s.exec }, func(s sample) cost { return s.remove },
	}
	for _, name := range names {
		fmt.Fprintf(w, "| %s |", name)
		for _, step := range steps {
			for _, of := range []func(cost) time.Duration{func(c cost) time.Duration { return c.wall }, func(c cost) time.Duration { return c.cpu }} {
				pick := func(name string) (median, least time.Duration) {
					return spread(samples[name], func(s sample) time.Duration { return of(step(s)) })
				}
				median, least := pick(name)
				first, _ := pick(names[0])
				fmt.Fprintf(w, " %s [%s] | %s |", ms(median), ms(least), ratio(median, first))
			}
		}
		fmt.Fprintln(w)
	}
}

func spread(all []sample, of func(sample) time.Duration) (median, least time.Duration) {
	if len(all) == 0 {
		return 0, 0
	}
	values := make([]time.Duration, len(all))
	for i, s := range all {
		values[i] = of(s)
	}
	slices.Sort(values)
	return values[len(values)/2], values[0]
}

func ms(d time.Duration) string {
	v := float64(d) / float64(time.Millisecond)
	switch {
	case v >= 20:
		return fmt.Sprintf("%.0f", v)
	case v < 2:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.1f", v)
}

func ratio(d, base time.Duration) string {
	if base <= 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f", float64(d)/float64(base))
}
