// Command points tells which fault points were hit, and fails if there is one that was not:
//
//	points [-errors] FILE...
//
// A line of a file is PROGRAM POINT ACTION, one for each time that a rule fired: the matrices of test/e2e write them
// (CRI_SERVER_POINTS), and test/torture (-points). Each point must have been where a program was killed; with -errors it
// must also have returned each of the errors that the matrices try.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
)

// errnos are what the fault matrices let a point return.
var errnos = []string{"ENOSPC", "EIO", "EMFILE", "ENOMEM", "EINTR"}

func main() {
	errors := flag.Bool("errors", false, "each point must have returned each error too")
	flag.Parse()
	want := []string{string(faultpoint.Kill)}
	if *errors {
		want = append(want, errnos...)
	}
	h := hits{}
	for _, name := range flag.Args() {
		if err := h.read(name); err != nil {
			fmt.Fprintln(os.Stderr, "points:", err)
			os.Exit(1)
		}
	}
	missing := h.missing(faultpoint.Points(), want)
	fmt.Print(h.table(faultpoint.Points()))
	if len(missing) > 0 {
		fmt.Fprintf(os.Stderr, "points: never hit:\n\t%s\n", strings.Join(missing, "\n\t"))
		os.Exit(1)
	}
}

// hits counts by point and action.
type hits map[string]map[string]int

func (h hits) read(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		w := strings.Fields(lines.Text())
		if len(w) != 3 {
			return fmt.Errorf("%s:%d: %q is not PROGRAM POINT ACTION", name, n, lines.Text())
		}
		if h[w[1]] == nil {
			h[w[1]] = map[string]int{}
		}
		h[w[1]][w[2]]++
	}
	return lines.Err()
}

// missing are the actions that points have not seen.
func (h hits) missing(points, actions []string) (never []string) {
	for _, p := range points {
		for _, a := range actions {
			if h[p][a] == 0 {
				never = append(never, p+" "+a)
			}
		}
	}
	return never
}

func (h hits) table(points []string) string {
	var b strings.Builder
	actions := append([]string{string(faultpoint.Kill)}, errnos...)
	sum := make([]int, len(actions))
	at := make([]int, len(actions))
	for _, p := range points {
		fmt.Fprintf(&b, "%-30s", p)
		for i, a := range actions {
			n := h[p][a]
			fmt.Fprintf(&b, " %s %d", a, n)
			if sum[i] += n; n > 0 {
				at[i]++
			}
		}
		b.WriteByte('\n')
	}
	for i, a := range actions {
		fmt.Fprintf(&b, "%s: %d times, at %d of %d points\n", a, sum[i], at[i], len(points))
	}
	var strange []string
	for p := range h {
		if !slices.Contains(points, p) {
			strange = append(strange, p)
		}
	}
	slices.Sort(strange)
	for _, p := range strange {
		fmt.Fprintf(&b, "no point any more: %s\n", p)
	}
	return b.String()
}
