package main

import (
	"os"
	"strings"
)

// threadsDir has a directory for each thread of this process; see proc_pid_task(5).
const threadsDir = "/proc/self/task"

// nameThreads gives the threads that Go's runtime has made by now the program's name, which is what ps -L, top and perf(1) show.
// execve(2) names them after the file, and that is a descriptor's number. Later ones have the name of the thread that makes them,
// hence the second look.
func nameThreads(name string) {
	for renamed := true; renamed; {
		renamed = false
		threads, _ := os.ReadDir(threadsDir)
		for _, t := range threads {
			file := threadsDir + "/" + t.Name() + "/comm"
			if b, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(b)) == name {
				continue // named, or gone
			}
			renamed = os.WriteFile(file, []byte(name), 0) == nil || renamed
		}
	}
}
