package testns

import (
	"testing"
	"time"
)

func TestFactor(t *testing.T) {
	for s, want := range map[string]float64{"": 1, "1": 1, "4": 4, "2.5": 2.5, "100": 100, "0": 0, "0.5": 0, "-3": 0, "101": 0, "NaN": 0, "Inf": 0, "4x": 0, " ": 0} {
		f, err := factor(s)
		if f != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %v, %v; want %v", s, f, err, want)
		}
	}
	defer func(f float64) { slowness = f }(slowness)
	slowness = 2.5
	if d := Patience(2 * time.Second); d != 5*time.Second {
		t.Errorf("2 s become %v", d)
	}
}
