package main

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestTrend(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	var x, flat, grows, saw, constant []float64
	for i := range 400 {
		x = append(x, float64(i*10))
		flat = append(flat, 100+random.NormFloat64())
		grows = append(grows, 100+float64(i)/100+random.NormFloat64())
		saw = append(saw, 100+float64(i%7))
		constant = append(constant, 5)
	}
	for name, tt := range map[string]struct {
		y     []float64
		level bool
	}{"flat": {flat, true}, "grows": {grows, false}, "saw": {saw, true}, "constant": {constant, true}} {
		if s := trend(name, x, tt.y); s.level() != tt.level || s.Blocks != blocks {
			t.Errorf("%+v", s)
		}
	}
	if s := trend("grows", x, grows); math.Abs(s.Slope-1) > 0.3 {
		t.Errorf("a slope of 1 per 1000 is found as %+v", s)
	}
	for _, n := range []int{0, 1, 2} {
		if s := trend("short", x[:n], flat[:n]); n > 0 && !s.level() {
			t.Errorf("%d points: %+v", n, s)
		}
	}
}

// With one degree of freedom more, t is never greater.
func TestStudent(t *testing.T) {
	last := math.Inf(1)
	for f := 1; f < 200; f++ {
		if now := student(f); now > last {
			t.Errorf("%d: %v after %v", f, now, last)
		} else {
			last = now
		}
	}
}
