// Command leaks compares what container runtimes can leave on a machine before and after:
//
//	leaks save FILE
//	leaks check FILE
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/seed-9a14075a/cri-server/test/testnode"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: leaks save|check FILE")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "leaks:", err)
		os.Exit(1)
	}
}

func run(what, file string) error {
	if what == "save" {
		b, err := json.Marshal(testnode.Take())
		if err != nil {
			return err
		}
		return os.WriteFile(file, b, 0o644)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var before testnode.Snapshot
	if err := json.Unmarshal(b, &before); err != nil {
		return err
	}
	var left []string
	for look := range 50 { // the kernel takes down namespaces after their last process
		last := left
		if left = before.Added(testnode.Take()); look > 0 {
			left = testnode.Still(last, left)
		}
		if len(left) == 0 {
			fmt.Printf("leak check: nothing left (%d mounts, interfaces, namespaces, cgroups, rules and directories compared)\n", len(before))
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("left on the machine:\n\t%s", testnode.Lines(left))
}
