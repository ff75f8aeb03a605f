package cri

import (
	"strings"
	"time"
)

// matchID tells whether an id filter (empty: any; else an id or the beginning of one) lets id through.
func matchID(filter, id string) bool { return strings.HasPrefix(id, filter) }

// matchLabels tells whether all of the selector's labels are there with the same values.
func matchLabels(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// nanos is t in ns since 1970, 0 for the zero time.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func timestamp() int64 { return time.Now().UnixNano() }
