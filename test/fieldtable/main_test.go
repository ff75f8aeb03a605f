package main

import (
	"strings"
	"testing"
)

// The document is what the program writes; it has no empty row, and each test it names exists.
func TestDocumentIsUpToDate(t *testing.T) {
	if err := run("../..", true); err != nil {
		t.Error(err)
	}
}

func TestMissingLines(t *testing.T) {
	n := names{rpcs: []string{"Do"}, messages: []message{{"M", []string{"a", "b"}}}}
	for text, want := range map[string]string{
		"Do = . TestMissingLines\nM.a = . TestMissingLines": "no line for M.b",
		"Do = . TestMissingLines\nM.* - none\nM.c - none":   "the CRI has no M.c",
		"Do = . TestMissingLines\nM.* - none":               "",
		"Do = . TestNothing\nM.* - none":                    "no such test",
		"Do = . TestMissingLines/nothing here\nM.* - none":  "no such part",
		"Do = .\nM.* - none":                                "is no test",
		"Do\nM.* - none":                                    "neither",
		"Do - a\nDo - b":                                    "twice",
	} {
		table, err := parse(text)
		var rows []row
		if err == nil {
			rows, err = table.rows(n)
		}
		if err == nil {
			err = existing(".", rows)
		}
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}
