// Command fieldtable writes docs/cri-fields.md: every RPC of the CRI and every field of its messages, and the tests that
// show what cri-server makes of it.
//
// The tests stand in fields.txt, one line for one or more names:
//
//	Message.field,field = directory Test; directory Test/subtest
//	RPC = …
//	Message.* = …                (all fields that have no line of their own)
//	Message.field - reason       (no test, and why)
//
// It fails when a name of the proto file has no line, a line no name, or a test that is named does not exist.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	check := flag.Bool("check", false, "only tell whether the file is up to date")
	repo := flag.String("repo", ".", "the repository's `root`")
	flag.Parse()
	if err := run(*repo, *check); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(repo string, check bool) error {
	text, err := os.ReadFile(filepath.Join(repo, "test", "fieldtable", "fields.txt"))
	if err != nil {
		return err
	}
	t, err := parse(string(text))
	if err != nil {
		return err
	}
	rows, err := t.rows(protoNames())
	if err != nil {
		return err
	}
	if err := existing(repo, rows); err != nil {
		return err
	}
	path := filepath.Join(repo, "docs", "cri-fields.md")
	want := markdown(rows)
	if !check {
		return os.WriteFile(path, []byte(want), 0o644)
	}
	if have, err := os.ReadFile(path); err != nil || string(have) != want {
		return errors.Join(fmt.Errorf("%s is out of date: go run ./test/fieldtable", path), err)
	}
	return nil
}
