//go:build faultpoints

package faultpoint

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Enabled tells whether the program was built with fault points.
const Enabled = true

// Hit is a point where the program may fail, die or wait, as the plan says.
func Hit(name string) error {
	if self == nil {
		return nil
	}
	return self.hit(name)
}

// Pass is a point where there is no error to be returned: a rule that says so is passed over.
func Pass(name string) { _ = Hit(name) }

// Environ is what the environment of a program that this one starts needs.
func Environ() []string {
	if self == nil {
		return nil
	}
	return []string{Variable + "=" + self.dir}
}

// self is the plan of this process, nil without the environment variable.
var self = open(os.Getenv(Variable), filepath.Base(os.Args[0]))

type plan struct {
	dir, name string

	mu    sync.Mutex
	seen  unix.Stat_t
	rules []*counted
}

type counted struct {
	Rule
	hits int
}

func open(dir, program string) *plan {
	if dir == "" {
		return nil
	}
	return &plan{dir: dir, name: filepath.Join(dir, program)}
}

// hit looks for the first rule that is due, and does what it says.
func (p *plan) hit(point string) error {
	p.mu.Lock()
	p.load()
	note(p.name+".hits", point)
	var due *counted
	for _, r := range p.rules {
		if ok, _ := path.Match(r.Point, point); !ok {
			continue
		}
		if r.hits++; due == nil && (r.hits == r.N || r.Onward && r.hits > r.N) {
			due = r
		}
	}
	if due == nil {
		p.mu.Unlock()
		return nil
	}
	note(p.name+".fired", point+" "+due.String())
	if !due.Onward && due.Action != Block {
		p.rules = slices.DeleteFunc(p.rules, func(r *counted) bool { return r == due })
		p.store()
	}
	p.mu.Unlock()
	return p.act(point, due)
}

func (p *plan) act(point string, r *counted) error {
	switch r.Action {
	case Kill:
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	case Panic:
		panic("fault point " + point)
	case Block:
		for p.holds(r) {
			time.Sleep(2 * time.Millisecond)
		}
		return nil
	}
	if d, ok := strings.CutPrefix(string(r.Action), "delay:"); ok {
		pause, _ := time.ParseDuration(d)
		time.Sleep(pause)
		return nil
	}
	e, _ := errno(string(r.Action))
	return &Error{Point: point, Errno: e}
}

// holds tells whether a rule is still in the plan.
func (p *plan) holds(r *counted) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.load()
	return slices.Contains(p.rules, r)
}

// load reads the plan if it has changed; a rule that was in it before goes on counting.
func (p *plan) load() {
	var st unix.Stat_t
	if err := unix.Stat(p.name+".plan", &st); err != nil {
		p.rules, p.seen = nil, unix.Stat_t{}
		return
	}
	if st.Ino == p.seen.Ino && st.Mtim == p.seen.Mtim && st.Size == p.seen.Size {
		return
	}
	b, err := os.ReadFile(p.name + ".plan")
	if err != nil {
		return
	}
	rules, err := Parse(string(b))
	if err != nil {
		note(p.name+".fired", err.Error())
	}
	old := p.rules
	p.rules, p.seen = nil, st
	for _, r := range rules {
		i := slices.IndexFunc(old, func(c *counted) bool { return c.Rule == r })
		if i < 0 {
			p.rules = append(p.rules, &counted{Rule: r})
			continue
		}
		p.rules = append(p.rules, old[i])
		old = slices.Delete(old, i, i+1)
	}
}

// store writes back what is left of the plan.
func (p *plan) store() {
	var b strings.Builder
	for _, r := range p.rules {
		fmt.Fprintln(&b, r.Rule)
	}
	if err := replace(p.name+".plan", b.String()); err != nil {
		note(p.name+".fired", err.Error())
	}
	_ = unix.Stat(p.name+".plan", &p.seen)
}

// note appends a line.
func note(name, line string) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = f.WriteString(line + "\n")
}
