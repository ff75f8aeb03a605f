// Package faultpoint names the places where a fault is most telling, the recorded steps of the calls that change
// something, and lets a test make the program die, fail, wait or stand still exactly there.
//
// The programs have it only when they are built with the tag faultpoints (make faults). Without the tag Hit and Pass are
// empty, are inlined, and leave no instruction behind: BenchmarkHit.
//
// With the tag the environment variable CRI_FAULTPOINTS names a directory that the test owns; without the variable nothing
// happens. Each program (cri-server, cri-monitor) has three files in it:
//
//	PROGRAM.plan   what is to happen, written by the test (Arm), read anew as soon as it has changed
//	PROGRAM.hits   each point that was passed, in order, one a line
//	PROGRAM.fired  each rule that has fired, one a line
//
// Files rather than a call: they work before the program serves anything and after it was killed. A line of a plan is
//
//	POINT N ACTION
//
// POINT is a name or a pattern as of path.Match. N counts the hits of the rule since the program read it: 3 is the third
// hit and no other, 3+ the third and all later ones, * each. ACTION is kill (SIGKILL to itself), panic, an error's name
// (ENOSPC), delay:DURATION, or block (until the rule is taken out of the plan). A rule for one hit is taken out of the plan
// as it fires, so that the next process does not meet it again; a block stays for the test to take out.
package faultpoint

import (
	_ "embed"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Variable is the environment variable that names the directory of plans.
const Variable = "CRI_FAULTPOINTS"

//go:embed points.txt
var points string

// Points are the names of all points, as a test finds them in the source.
func Points() []string { return strings.Fields(points) }

// Error is what a point returns when a rule says so. It unwraps to the unix.Errno.
type Error struct {
	Point string
	Errno unix.Errno
}

func (e *Error) Error() string { return fmt.Sprintf("fault point %s: %v", e.Point, e.Errno) }

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Errno }

// Action is what happens at a point.
type Action string

// The actions besides the names of errors and delay:DURATION.
const (
	Kill  Action = "kill"
	Panic Action = "panic"
	Block Action = "block"
)

// Rule is a line of a plan.
type Rule struct {
	Point  string // name or pattern
	N      int    // first hit that it is for, from 1
	Onward bool   // and all later ones
	Action Action
}

func (r Rule) String() string {
	n := strconv.Itoa(r.N)
	if r.Onward {
		n += "+"
	}
	return fmt.Sprintf("%s %s %s", r.Point, n, r.Action)
}

// Parse reads a plan. Empty lines and those that begin with # are passed over.
func Parse(text string) ([]Rule, error) {
	var rules []Rule
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		r, err := parseRule(line)
		if err != nil {
			return nil, fmt.Errorf("plan: %q: %w", line, err)
		}
		rules = append(rules, r)
	}
	return rules, nil
}

func parseRule(line string) (Rule, error) {
	f := strings.Fields(line)
	if len(f) != 3 {
		return Rule{}, fmt.Errorf("%d words, not POINT N ACTION", len(f))
	}
	r := Rule{Point: f[0], N: 1, Onward: true, Action: Action(f[2])}
	if _, err := path.Match(r.Point, ""); err != nil {
		return Rule{}, err
	}
	if f[1] != "*" {
		n, onward := strings.CutSuffix(f[1], "+")
		var err error
		if r.N, err = strconv.Atoi(n); err != nil || r.N < 1 {
			return Rule{}, fmt.Errorf("%q is no count", f[1])
		}
		r.Onward = onward
	}
	switch r.Action {
	case Kill, Panic, Block:
		return r, nil
	}
	if d, ok := strings.CutPrefix(string(r.Action), "delay:"); ok {
		_, err := time.ParseDuration(d)
		return r, err
	}
	if _, ok := errno(string(r.Action)); !ok {
		return Rule{}, fmt.Errorf("there is no action %q", r.Action)
	}
	return r, nil
}

// errno finds an error by its name.
func errno(name string) (unix.Errno, bool) {
	for e := unix.Errno(1); e < 134; e++ { // errno(3): EHWPOISON is the last
		if unix.ErrnoName(e) == name {
			return e, true
		}
	}
	return 0, false
}

// Arm replaces the plan of a program. No rules: nothing happens, and what is blocked goes on.
func Arm(dir, program string, rules ...Rule) error {
	var b strings.Builder
	for _, r := range rules {
		fmt.Fprintln(&b, r)
	}
	if _, err := Parse(b.String()); err != nil {
		return err
	}
	return replace(filepath.Join(dir, program+".plan"), b.String())
}

// replace lets a reader see the old or the new plan, and tell them apart by the inode.
func replace(name, text string) error {
	temp, err := os.CreateTemp(filepath.Dir(name), ".plan-")
	if err != nil {
		return err
	}
	_, err = temp.WriteString(text)
	if cerr := temp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(temp.Name(), name)
	}
	if err != nil {
		_ = os.Remove(temp.Name())
	}
	return err
}

// Hits reads which points a program has passed since the test last removed the file.
func Hits(dir, program string) ([]string, error) { return lines(filepath.Join(dir, program+".hits")) }

// Fired reads which rules have fired, "POINT rule" each.
func Fired(dir, program string) ([]string, error) { return lines(filepath.Join(dir, program+".fired")) }

func lines(name string) ([]string, error) {
	b, err := os.ReadFile(name)
	if os.IsNotExist(err) {
		return nil, nil
	}
	return strings.FieldsFunc(string(b), func(r rune) bool { return r == '\n' }), err
}
