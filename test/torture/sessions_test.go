package main

import (
	"testing"

	"github.com/seed-9a14075a/cri-server/test/torture/stream"
)

func TestConsecutive(t *testing.T) {
	const seed = 7
	lines := func(from, to int64) (b []byte) {
		for n := from; n < to; n++ {
			b = stream.AppendLine(b, seed, stream.Stdout, n)
		}
		return b
	}
	piece := lines(100, 160)
	gap := append(lines(100, 120), lines(121, 160)...)
	changed := append([]byte(nil), piece...)
	changed[len(changed)/2] ^= 1
	for name, tt := range map[string]struct {
		b        []byte
		from, to int64
		ok       bool
	}{
		"nothing": {nil, 100, 160, true}, "whole": {piece, 100, 160, true}, "cut": {piece[3 : len(piece)-2], 100, 160, true},
		"older than the count": {piece, 140, 160, true}, "a gap": {gap, 100, 160, false}, "changed": {changed, 100, 160, false},
		"of later": {piece, 0, 50, false}, "of another seed": {lines(0, 1), 50000, 50100, true},
	} {
		if err := consecutive(tt.b, seed, stream.Stdout, tt.from, tt.to); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWithoutWords(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "17\n": "17\n", "1": "1",
		"17\nE1122 09:01:57.840241   32556 v2.go:105] \"Copying stdin failed\"\n":  "17\n",
		"E0102 09:01:57.840241 1 v2.go:1] a\nE0102 09:01:57.840242 1 v2.go:1] b\n": "",
		"17time=\"2026-11-22T09:01:57Z\" level=fatal msg=x\n":                      "17",
	} {
		if got := string(withoutWords([]byte(in))); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
