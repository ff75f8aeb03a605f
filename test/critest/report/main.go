// Command report judges a run of critest: it prints what failed and why, compares that with the list of specs that are
// known not to pass, and ends with one line of counts.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
)

// suite is the part of ginkgo's JSON report that matters here.
type suite struct {
	SpecReports []spec
	RunTime     int64 // ns
}

type spec struct {
	ContainerHierarchyTexts []string
	LeafNodeType            string
	LeafNodeText            string
	State                   string
	RunTime                 int64 // ns
	Failure                 struct {
		Message  string
		Location struct {
			FileName   string
			LineNumber int
		}
	}
}

func (s spec) name() string {
	return strings.Join(append(s.ContainerHierarchyTexts, s.LeafNodeText), " ")
}

func main() {
	expected := flag.String("expected", "", "`file` that lists the specs not yet passing")
	handler := flag.String("handler", "", "the runtime handler of the run; the list may have lines for one handler only")
	partial := flag.Bool("partial", false, "only some specs were run: don't complain of listed ones that were not")
	counts := flag.String("counts", "", "write passed, failed and skipped to this `file`; what fails as listed counts as skipped")
	flag.Parse()
	t, err := judge(os.Stdout, flag.Arg(0), *expected, *handler, *partial)
	if err == nil && *counts != "" {
		err = os.WriteFile(*counts, fmt.Appendf(nil, "%d %d %d\n", t.passed, t.unexpected, t.skipped+t.failed-t.unfit), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "critest-report:", err)
		os.Exit(1)
	}
	if t.unexpected > 0 {
		os.Exit(1)
	}
}

// judge prints how the run went and counts.
func judge(w io.Writer, report, expected, handler string, partial bool) (*tally, error) {
	b, err := os.ReadFile(report)
	if err != nil {
		return nil, err
	}
	var suites []suite
	if err := json.Unmarshal(b, &suites); err != nil {
		return nil, fmt.Errorf("%s: %w", report, err)
	}
	known, err := readExpected(expected, handler)
	if err != nil {
		return nil, err
	}
	t := &tally{w: w, known: known, seen: map[string]bool{}}
	var ran int64
	for _, s := range suites {
		ran += s.RunTime
		for _, s := range s.SpecReports {
			t.count(s)
		}
	}
	if !partial {
		t.stale()
	}
	t.slowest()
	fmt.Fprintf(w, "critest: %d passed, %d failed, %d skipped of %d (%.0f s)\n", t.passed, t.failed, t.skipped,
		t.passed+t.failed+t.skipped, float64(ran)/1e9)
	return t, nil
}

type tally struct {
	w                       io.Writer
	known                   map[string]string // spec to reason
	seen                    map[string]bool
	passed, failed, skipped int
	unexpected              int // what the list doesn't explain
	unfit                   int // those of them that failed
	times                   []spec
}

func (t *tally) count(s spec) {
	if s.LeafNodeType != "It" {
		if s.State == "failed" || s.State == "panicked" {
			t.unexpected++
			fmt.Fprintf(t.w, "FAIL %s: %s\n", s.LeafNodeType, first(s.Failure.Message))
		}
		return
	}
	name := s.name()
	if strings.Contains(name, "benchmark") {
		return // filtered out by critest itself unless asked for
	}
	reason, listed := t.known[name]
	t.seen[name] = true
	t.times = append(t.times, s)
	switch s.State {
	case "passed":
		t.passed++
		if listed {
			t.unexpected++
			fmt.Fprintf(t.w, "PASSES, but is listed as not passing (%s): %s\n", reason, name)
		}
	case "skipped", "pending":
		t.skipped++
		if !listed && s.Failure.Message != "" { // without a message it was filtered out, by FOCUS
			t.unexpected++
			fmt.Fprintf(t.w, "SKIP, not listed: %s: %s\n", name, first(s.Failure.Message))
		}
	default:
		t.failed++
		verdict := "FAIL"
		if listed {
			verdict = "fail, as listed (" + reason + ")"
		} else {
			t.unexpected++
			t.unfit++
		}
		fmt.Fprintf(t.w, "%s: %s\n      %s (%s:%d)\n", verdict, name, first(s.Failure.Message), s.Failure.Location.FileName, s.Failure.Location.LineNumber)
	}
}

// stale complains of listed specs that do not exist.
func (t *tally) stale() {
	for name := range t.known {
		if !t.seen[name] {
			t.unexpected++
			fmt.Fprintf(t.w, "listed, but there is no such spec: %s\n", name)
		}
	}
}

func (t *tally) slowest() {
	sort.Slice(t.times, func(i, j int) bool { return t.times[i].RunTime > t.times[j].RunTime })
	for _, s := range t.times[:min(5, len(t.times))] {
		if s.RunTime > 8e9 {
			fmt.Fprintf(t.w, "slow: %.1f s %s\n", float64(s.RunTime)/1e9, s.name())
		}
	}
}

// readExpected reads lines of "spec name | reason". A condition may stand before the reason: "handler=NAME", for runs with
// that handler only, or "without=apparmor", for machines without it.
func readExpected(file, handler string) (map[string]string, error) {
	known := map[string]string{}
	if file == "" {
		return known, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for l := bufio.NewScanner(f); l.Scan(); {
		line := strings.TrimSpace(l.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		parts := strings.Split(line, " | ")
		if len(parts) < 2 {
			return nil, fmt.Errorf("%s: %q has no reason", file, line)
		}
		if len(parts) == 3 {
			holds, err := condition(parts[1], handler)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			if !holds {
				continue
			}
		}
		known[parts[0]] = parts[len(parts)-1]
	}
	return known, nil
}

func condition(text, handler string) (bool, error) {
	if text == "without=apparmor" {
		b, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled")
		return !strings.HasPrefix(string(b), "Y"), nil
	}
	if only, ok := strings.CutPrefix(text, "handler="); ok {
		return only == handler, nil
	}
	return false, fmt.Errorf("unknown condition %q", text)
}

func first(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	return s[:min(len(s), 400)]
}
