package main

import (
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

// collect has cri-server collect its garbage twice, so that the live heap is that of a server at rest: what sync.Pool keeps is
// gone after the second, and nothing of a cycle that was under way when a collection happened to begin counts. After the
// next of the -at numbers of pods the heap's profile is written (GODEBUG=memprofilerate=1 has each object in it):
//
//	go tool pprof -sample_index=inuse_objects -base heap-2000 bin/cri-server heap-20000
func (s *soak) collect(ctx context.Context) error {
	if err := s.heap(ctx, io.Discard); err != nil {
		return err
	}
	if s.profiles == "" || len(s.at) == 0 || s.cycles.Load() < s.at[0] {
		return s.heap(ctx, io.Discard)
	}
	f, err := os.Create(filepath.Join(s.profiles, fmt.Sprintf("heap-%d", s.at[0])))
	if err != nil {
		return err
	}
	defer f.Close()
	s.at = s.at[1:]
	return s.heap(ctx, f)
}

// heap collects the server's garbage and writes the profile of what is left.
func (s *soak) heap(ctx context.Context, w io.Writer) error {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(s.node.State, "admin.sock"))
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://cri-server/debug/pprof/heap?gc=1", nil)
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
	_, err = io.Copy(w, answer.Body)
	return err
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
