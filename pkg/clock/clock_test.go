package clock

import (
	"testing"
	"time"
)

func TestOrder(t *testing.T) {
	now := time.Now() // has a monotonic reading, which must not decide
	ago, ahead := now.Add(-time.Hour), now.Add(time.Hour)
	for name, tt := range map[string]struct {
		got, want time.Time
	}{
		"nothing before":     {After(now), now},
		"all are before":     {After(now, ago, now.Add(-1)), now},
		"one is later":       {After(now, ago, ahead), ahead.Add(1)},
		"the same":           {After(now, now), now.Add(1)},
		"two are later":      {After(now, ahead, ahead.Add(5), ago), ahead.Add(6)},
		"in order":           {NotBefore(now, ago), now},
		"set back":           {NotBefore(ago, now), now},
		"nothing to be kept": {NotBefore(now, time.Time{}), now},
	} {
		if !tt.got.Equal(tt.want) || tt.got != tt.got.Round(0) {
			t.Errorf("%s: %v, not %v", name, tt.got, tt.want)
		}
	}
}
