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
	// A high water mark that rises once, wherever it does, with and without noise.
	for at := 20; at < 400; at += 10 {
		step, noisy := make([]float64, 400), make([]float64, 400)
		for i := range step {
			if i >= at {
				step[i] = 1
			}
			noisy[i] = step[i] + random.NormFloat64()/10
		}
		if s := trend("step", x, step); !s.level() {
			t.Errorf("at %d: %+v", at, s)
		}
		if s := trend("noisy step", x, noisy); !s.level() {
			t.Errorf("at %d: %+v", at, s)
		}
	}
	for _, n := range []int{0, 1, 2} {
		if s := trend("short", x[:n], flat[:n]); n > 0 && !s.level() {
			t.Errorf("%d points: %+v", n, s)
		}
	}
}

// How often a series without a trend has one, and one with a small trend none: of 1 000 each.
func TestErrors(t *testing.T) {
	random := rand.New(rand.NewPCG(2, 2))
	x := make([]float64, blocks)
	for i := range x {
		x[i] = float64(i)
	}
	count := func(r, leak float64) (found int) {
		y := make([]float64, blocks)
		for range 1000 {
			last := random.NormFloat64() / math.Sqrt(1-r*r)
			for i := range y {
				last = r*last + random.NormFloat64()
				y[i] = last + leak*float64(i)
			}
			if slope, half := line(x, y); math.Abs(slope) > half {
				found++
			}
		}
		return found
	}
	for _, tt := range []struct {
		r, leak  float64
		min, max int
	}{
		{r: 0, max: 50}, {r: 0.3, max: 90}, {r: 0.6, max: 110}, {r: 0.8, max: 140},
		{leak: 0.2, min: 900, max: 1000}, {leak: 0.3, min: 970, max: 1000}, {r: 0.3, leak: 0.4, min: 800, max: 1000},
	} {
		if n := count(tt.r, tt.leak); n < tt.min || n > tt.max {
			t.Errorf("autocorrelation %v, leak %v a block: a trend in %d of 1000, want %d to %d", tt.r, tt.leak, n, tt.min, tt.max)
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
