package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// entry is an error or warning in kubelet's log, in klog's format.
var entry = regexp.MustCompile(`^([EW]\d{4} [0-9:.]+) +\d+ ([\w.-]+:\d+)\] (.*)$`)

// accepted are complaints that are not about cri-server, each with its reason.
var accepted = []struct {
	pattern *regexp.Regexp
	reason  string
}{
	{regexp.MustCompile(`with CrashLoopBackOff: `), "pods that are meant to"},
	{regexp.MustCompile(`timed out after 1s.*sleep 77`), "a probe that is meant to"},
	{regexp.MustCompile(`is exited, its log can't be reopened`), "kubelet rotates the log of a container that ends"},
	{regexp.MustCompile(`error reading /dev/kmsg: read /dev/kmsg: broken pipe|exiting analyzeLines`), "the machine's kernel log, overrun"},
	{regexp.MustCompile(`^(Error while processing event|Failed to watch directory) .* no such file`), "cadvisor sees a cgroup that is gone again"},
	{regexp.MustCompile(`RecentStats: unable to find data in memory cache|"Failed to get system container stats".*unknown container`), "cadvisor has measured nothing yet of what has just begun"},
	{regexp.MustCompile(`"Unable to process watch event".*doesn't exist in cache|"Could not get metadata".*/manifests/.*no such file`), "manifests that go while kubelet lists them"},
	{regexp.MustCompile(`failed to check if node is newer`), "there is no API server"},
	{regexp.MustCompile(`code = NotFound desc = container .* not found`), "kubelet asks again for what it has removed"},
	{regexp.MustCompile(`code = Canceled desc = context canceled`), "kubelet ends the probes of a pod that ends"},
	{regexp.MustCompile(`no imagefs label for configured runtime`), "cadvisor knows the labels of containerd and CRI-O only"},
	{regexp.MustCompile(`^"Eviction manager: `), "a threshold that is meant to be passed"},
	{regexp.MustCompile(`(?i)standalone`), "it is"},
	{regexp.MustCompile(`failed to apply oom score -999 to PID`), "this root may not"},
	{regexp.MustCompile(`Failed to set rlimit on max file handles`), "this root may not"},
	{regexp.MustCompile(`Flexvolume plugin directory at .* Recreating|checkpoint is not found`), "a first start"},
	{regexp.MustCompile(`Skipping pod synchronization.*(may not have completed yet|pleg has yet to be successful)`), "the first second"},
	{regexp.MustCompile(`failed to find pid namespace of init process`), "the machine's pid 1 is out of sight"},
}

// complaints lists the errors and warnings in kubelet's logs that nothing explains. While kubelet or cri-server were away, the
// one may miss the other.
func complaints(r *run) error {
	logs, err := filepath.Glob(filepath.Join(r.Dir, "kubelet-*.log"))
	if err != nil {
		return err
	}
	counts, examples := map[string]int{}, map[string]string{}
	for _, file := range logs {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			m := entry.FindStringSubmatch(lines.Text())
			if m == nil || r.explained(m[1], m[3]) {
				continue
			}
			message, _, _ := strings.Cut(m[3], `" `)
			key := m[2] + " " + message
			counts[key]++
			examples[key] = m[3]
		}
		if err := lines.Err(); err != nil {
			return err
		}
	}
	if len(counts) == 0 {
		return nil
	}
	var list []string
	for key, n := range counts {
		list = append(list, fmt.Sprintf("%d× %s: %.600s", n, strings.Fields(key)[0], examples[key]))
	}
	slices.Sort(list)
	return fmt.Errorf("%d kinds:\n\t%s", len(list), strings.Join(list, "\n\t"))
}

func (r *run) explained(stamp, message string) bool {
	for _, a := range accepted {
		if a.pattern.MatchString(message) {
			return true
		}
	}
	at, err := time.ParseInLocation("20060102 15:04:05.000000", time.Now().Format("2006")+stamp[1:], time.Local)
	if err != nil {
		return false
	}
	for _, w := range r.away {
		if !at.Before(w[0]) && at.Before(w[1]) {
			return true
		}
	}
	return false
}
