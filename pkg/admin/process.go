package admin

import (
	"context"
	"net/http"
	"runtime"
	"runtime/metrics"
)

// Process tells how the server itself is, at the moment of the answer.
type Process struct {
	Goroutines int `json:"goroutines"`
	// HeapLive is what the last garbage collection found in use, in bytes.
	HeapLive uint64 `json:"heap_live"`
}

func (s *server) process(w http.ResponseWriter, _ *http.Request) {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	s.reply(w, Process{Goroutines: runtime.NumGoroutine(), HeapLive: live[0].Value.Uint64()})
}

// Process tells how the server's process is.
func (c *Client) Process(ctx context.Context) (Process, error) {
	var p Process
	err := c.call(ctx, http.MethodGet, "/process", nil, &p)
	return p, err
}
