package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// memory is what a server's Go runtime says of its memory: runtime.MemStats, by field.
type memory map[string]float64

// kib is the sum of fields, in KiB.
func (m memory) kib(fields ...string) (sum float64) {
	for _, f := range fields {
		sum += m[f] / 1024
	}
	return sum
}

// collect has cri-server collect its garbage twice and returns what is left: what sync.Pool keeps is gone after the second, and
// nothing counts of what was under way, or was allocated, while some collection happened to run; that is more the busier the
// machine is. After the next of the -at numbers of pods the heap's profile is written, too (with GODEBUG=memprofilerate=1
// each object is in it):
//
//	go tool pprof -sample_index=inuse_objects -base heap-2000 bin/cri-server heap-20000
func (s *soak) collect(ctx context.Context) (memory, error) {
	if err := s.heap(ctx, "gc=1", func(r io.Reader) error { _, err := io.Copy(io.Discard, r); return err }); err != nil {
		return nil, err
	}
	var m memory
	if err := s.heap(ctx, "gc=1&debug=1", func(r io.Reader) (err error) { m, err = readMemory(r); return err }); err != nil {
		return nil, err
	}
	if s.profiles == "" || len(s.at) == 0 || s.cycles.Load() < s.at[0] {
		return m, nil
	}
	f, err := os.Create(filepath.Join(s.profiles, fmt.Sprintf("heap-%d", s.at[0])))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s.at = s.at[1:]
	return m, s.heap(ctx, "", func(r io.Reader) error { _, err := io.Copy(f, r); return err })
}

// heap asks the server for the profile of its heap: see net/http/pprof.
func (s *soak) heap(ctx context.Context, query string, read func(io.Reader) error) error {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(s.node.State, "admin.sock"))
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://cri-server/debug/pprof/heap?"+query, nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("heap of cri-server: %w", err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("heap of cri-server: %s", answer.Status)
	}
	return read(answer.Body)
}

// readMemory reads the end of a heap profile in text: lines such as "# HeapAlloc = 2048" and "# Stack = 10 / 20", of which the
// second is what the runtime has of the kernel.
func readMemory(r io.Reader) (memory, error) {
	m := memory{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, value, ok := strings.Cut(strings.TrimPrefix(lines.Text(), "# "), " = ")
		if !ok || !strings.HasPrefix(lines.Text(), "# ") {
			continue
		}
		if i := strings.LastIndex(value, " / "); i >= 0 {
			value = value[i+3:]
		}
		if n, err := strconv.ParseFloat(value, 64); err == nil {
			m[name] = n
		}
	}
	if m["HeapAlloc"] == 0 {
		return nil, fmt.Errorf("heap of cri-server: the profile does not tell its size: %v", lines.Err())
	}
	return m, lines.Err()
}

// numbers reads a list such as "2000,20000", in rising order.
func numbers(list string) (all []int64, err error) {
	for field := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ',' }) {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil || n <= 0 || len(all) > 0 && n <= all[len(all)-1] {
			return nil, fmt.Errorf("%q: rising numbers of pods are wanted", list)
		}
		all = append(all, n)
	}
	return all, nil
}
