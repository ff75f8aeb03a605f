// Command tally reads the output of `go test -json`, prints what failed with its output, what was skipped and why, and
// counts. A skip that the list of expected skips doesn't explain counts as a failure.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"sort"
	"strings"
)

type event struct {
	Action, Package, ImportPath, Test, Output string
	Elapsed                                   float64 // seconds
}

type expected struct {
	pattern *regexp.Regexp
	reason  string
}

func main() {
	skips := flag.String("skips", "", "`file` that lists tests that may be skipped")
	counts := flag.String("counts", "", "write passed, failed and skipped to this `file`")
	flag.Parse()
	if err := run(os.Stdin, os.Stdout, *skips, *counts); err != nil {
		fmt.Fprintln(os.Stderr, "tally:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer, skips, counts string) error {
	list, err := readSkips(skips)
	if err != nil {
		return err
	}
	t := &tally{out: out, list: list, output: map[string][]string{}, failedTests: map[string]bool{}}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if len(line) > 0 {
			t.line(line)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	t.summary()
	if counts != "" {
		return os.WriteFile(counts, fmt.Appendf(nil, "%d %d %d\n", t.passed, t.failed, t.skipped), 0o644)
	}
	return nil
}

func readSkips(file string) ([]expected, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var list []expected
	for _, l := range strings.Split(string(b), "\n") {
		if l = strings.TrimSpace(l); l == "" || l[0] == '#' {
			continue
		}
		pattern, reason, ok := strings.Cut(l, " | ")
		if !ok {
			return nil, fmt.Errorf("%s: %q has no reason", file, l)
		}
		re, err := regexp.Compile(pattern)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		list = append(list, expected{re, reason})
	}
	return list, nil
}

type tally struct {
	out                     io.Writer
	list                    []expected
	output                  map[string][]string // what a test, or a package outside its tests, has printed
	failedTests             map[string]bool     // by package
	slow                    []event
	passed, failed, skipped int
}

func (t *tally) line(line string) {
	var e event
	if json.Unmarshal([]byte(line), &e) != nil {
		fmt.Fprint(t.out, line) // what go itself prints
		return
	}
	if e.Package == "" {
		e.Package = e.ImportPath
	}
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		if len(t.output[key]) < 400 {
			t.output[key] = append(t.output[key], e.Output)
		}
		return
	case "pass", "fail", "skip", "build-fail":
		if e.Test == "" {
			t.pack(e)
		} else {
			t.test(e)
		}
		delete(t.output, key)
	}
}

func (t *tally) test(e event) {
	name := short(e.Package) + " " + e.Test
	if e.Elapsed > 5 {
		t.slow = append(t.slow, e)
	}
	text := strings.Join(t.output[e.Package+" "+e.Test], "")
	switch e.Action {
	case "pass":
		t.passed++
	case "fail":
		t.failed++
		t.failedTests[e.Package] = true
		fmt.Fprintf(t.out, "FAIL %s (%.1f s)\n%s", name, e.Elapsed, indent(text))
	case "skip":
		t.skipped++
		for _, x := range t.list {
			if x.pattern.MatchString(name) {
				fmt.Fprintf(t.out, "skip %s: %s\n", name, x.reason)
				return
			}
		}
		t.failed++
		fmt.Fprintf(t.out, "SKIP, not listed: %s\n%s", name, indent(text))
	}
}

// pack judges the result of a whole package: one that failed without a failed test didn't build, crashed or leaked.
func (t *tally) pack(e event) {
	text := strings.Join(t.output[e.Package+" "], "")
	switch {
	case e.Action == "pass" && e.Elapsed > 0:
		fmt.Fprintf(t.out, "ok   %s (%.1f s)\n", short(e.Package), e.Elapsed)
	case e.Action == "build-fail":
		fmt.Fprintf(t.out, "FAIL %s doesn't build\n%s", short(e.Package), indent(text))
	case e.Action == "fail":
		if !t.failedTests[e.Package] {
			t.failed++
		}
		fmt.Fprintf(t.out, "FAIL %s (%.1f s)\n%s", short(e.Package), e.Elapsed, indent(text))
	}
}

func (t *tally) summary() {
	sort.Slice(t.slow, func(i, j int) bool { return t.slow[i].Elapsed > t.slow[j].Elapsed })
	for _, e := range t.slow[:min(len(t.slow), 10)] {
		fmt.Fprintf(t.out, "slow %s %s (%.1f s)\n", short(e.Package), e.Test, e.Elapsed)
	}
}

func short(pkg string) string {
	return strings.TrimPrefix(pkg, "github.com/seed-9a14075a/cri-server/")
}

func indent(s string) string {
	if s = strings.TrimRight(s, "\n"); s == "" {
		return ""
	}
	return "     " + strings.ReplaceAll(s, "\n", "\n     ") + "\n"
}
