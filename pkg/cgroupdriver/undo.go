package cgroupdriver

import (
	"fmt"
	"strings"
)

// deviceFile: some files hold a line for each device; only the line of a setting's own device is its previous value.
func deviceFile(file string) bool {
	return file == "io.max" || strings.HasPrefix(file, "blkio.throttle.") || strings.HasSuffix(file, "_device")
}

// previous reads what writing s will replace, in a form that can be written back. It is false for what can't be read:
// a missing file, whose write then fails and says why, and memory.reclaim, which is no setting.
func previous(s setting) (setting, bool) {
	old, err := read(s.dir, s.file)
	if err != nil {
		return s, false
	}
	device, rest, perDevice := strings.Cut(s.value, " ")
	if !strings.Contains(device, ":") {
		perDevice = false
	}
	if !perDevice || !deviceFile(s.file) && !strings.Contains(s.file, "weight") {
		return setting{s.dir, s.file, plain(s.file, old)}, true
	}
	for line := range strings.Lines(old) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), device+" "); ok {
			return setting{s.dir, s.file, device + " " + v}, true
		}
	}
	none := "0" // v1: no throttle
	if key, _, ok := strings.Cut(rest, "="); ok {
		none = key + "=max"
	} else if strings.HasPrefix(s.file, "io.") {
		none = "default"
	}
	return setting{s.dir, s.file, fmt.Sprintf("%s %s", device, none)}, true
}

// plain undoes the few files that read otherwise than they are written.
func plain(file, old string) string {
	switch {
	case strings.HasSuffix(file, ".weight") && strings.HasPrefix(old, "default "):
		line, _, _ := strings.Cut(old, "\n")
		return strings.TrimPrefix(line, "default ")
	case file == "memory.oom_control":
		for line := range strings.Lines(old) {
			if v, ok := strings.CutPrefix(line, "oom_kill_disable "); ok {
				return strings.TrimSpace(v)
			}
		}
	case old == "": // an empty cpuset
		return "\n"
	}
	return old
}
