// Package doctor looks at a node and says what pods will lack on it: kernel features, cgroup controllers, rights, network
// configuration, space. It changes nothing on the host. Each finding says what follows and how to mend it.
package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/seed-9a14075a/cri-server/pkg/config"
)

// Severity orders findings.
type Severity string

// An Error keeps pods from running; a Warning takes something from them; OK and Note are for the record.
const (
	OK      Severity = "ok"
	Note    Severity = "note"
	Warning Severity = "warning"
	Error   Severity = "error"
)

var order = []Severity{Error, Warning, Note, OK}

// Finding is the result of one check.
type Finding struct {
	// Code is stable and short: "cgroup-memory".
	Code     string   `json:"code"`
	Severity Severity `json:"severity"`
	Title    string   `json:"title"`
	// Text says what was seen and what follows from it.
	Text string `json:"text,omitempty"`
	// Fix says what to do.
	Fix string `json:"fix,omitempty"`
	// Since is the kernel version that has what is missing.
	Since string `json:"since,omitempty"`
}

// checkTimeout bounds one check: a hung file system must not hang the doctor.
const checkTimeout = 5 * time.Second

// check is one look at the host.
type check struct {
	code string
	run  func(h *host) []Finding
}

// host is what checks read from; tests put directories of their own in place.
type host struct {
	cfg  *config.Config
	proc string // /proc
	sys  string // /sys
	run  string // /run
	// kubelet is its configuration where kubeadm puts it.
	kubelet string
}

var checks = []check{
	{"root", checkRoot},
	{"kernel", checkKernel},
	{"cgroup", checkCgroups},
	{"cgroup-driver", checkDriver},
	{"namespaces", checkNamespaces},
	{"mounts", checkMounts},
	{"seccomp", checkSeccomp},
	{"capabilities", checkCapabilities},
	{"lsm", checkLSM},
	{"network", checkNetwork},
	{"forwarding", checkForwarding},
	{"limits", checkLimits},
	{"disk", checkDisk},
	{"runtimes", checkRuntimes},
}

// Examine runs all checks for a server with this configuration. Findings come worst first.
func Examine(ctx context.Context, cfg *config.Config) []Finding {
	return examine(ctx, &host{cfg: cfg, proc: "/proc", sys: "/sys", run: "/run", kubelet: "/var/lib/kubelet/config.yaml"}, checks, checkTimeout)
}

func examine(ctx context.Context, h *host, checks []check, timeout time.Duration) []Finding {
	var all []Finding
	for _, c := range checks {
		all = append(all, bounded(ctx, h, c, timeout)...)
	}
	slices.SortStableFunc(all, func(a, b Finding) int {
		return slices.Index(order, a.Severity) - slices.Index(order, b.Severity)
	})
	return all
}

// bounded runs one check. One that hangs in the kernel can't be ended; its goroutine goes with the process, which the
// doctor's is soon over.
func bounded(ctx context.Context, h *host, c check, timeout time.Duration) []Finding {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	done := make(chan []Finding, 1)
	go func() { done <- c.run(h) }()
	select {
	case f := <-done:
		return f
	case <-ctx.Done():
		return []Finding{{Code: c.code + "-hangs", Severity: Error, Title: "the check " + c.code + " gave no answer",
			Text: ctx.Err().Error(), Fix: "look for processes in state D and for file systems that don't answer"}}
	}
}

// Worst is the greatest severity, OK when there are no findings.
func Worst(list []Finding) Severity {
	for _, s := range order {
		if slices.ContainsFunc(list, func(f Finding) bool { return f.Severity == s }) {
			return s
		}
	}
	return OK
}

// WriteJSON writes the findings as one array.
func WriteJSON(w io.Writer, list []Finding) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(list)
}

// WriteText writes the findings for a reader; what is well takes one line.
func WriteText(w io.Writer, list []Finding) error {
	var b strings.Builder
	for _, f := range list {
		fmt.Fprintf(&b, "%-8s %-22s %s\n", f.Severity, f.Code, f.Title)
		for _, more := range []struct{ name, text string }{{"", f.Text}, {"fix: ", f.Fix}, {"since Linux ", f.Since}} {
			if more.text != "" && (f.Severity != OK || more.name == "") {
				fmt.Fprintf(&b, "%32s%s%s\n", "", more.name, more.text)
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
