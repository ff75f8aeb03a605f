package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// walk is a life of two containers in a pod by crictl. Each step leaves what the next ones need.
type walk struct {
	*fixture
	podFile          string
	pod, app, web    string // ids
	beats            string // log file of app
	digest           string
	webFile, appFile string
	running          bool
}

type step struct {
	name string
	run  func(*walk)
}

// needed says that the steps after s make no sense without it.
func (s step) needed() bool {
	switch s.name {
	case "pull by tag", "runp", "create", "start", "inspect":
		return true
	}
	return false
}

// steps in the order in which an operator would take them.
func steps() []step {
	return []step{
		{"version", (*walk).version}, {"info", (*walk).info}, {"runtime-config", (*walk).runtimeConfig},
		{"pull by tag", (*walk).pullTag}, {"pull by digest", (*walk).pullDigest}, {"images", (*walk).images},
		{"runp", (*walk).runp}, {"pods", (*walk).pods}, {"create", (*walk).create}, {"start", (*walk).startBoth},
		{"inspect", (*walk).inspect}, {"exec -s", (*walk).execSync}, {"exec -i", (*walk).execStdin}, {"exec -it", (*walk).execTerminal},
		{"attach", (*walk).attach}, {"logs", (*walk).logs}, {"logs -f", (*walk).follow}, {"port-forward", (*walk).portForward},
		{"stats", (*walk).stats}, {"update", (*walk).update}, {"stop", (*walk).stop}, {"logs are whole", (*walk).wholeLogs},
		{"rm", (*walk).rm}, {"stopp", (*walk).stopp}, {"rmp", (*walk).rmp}, {"rmi", (*walk).rmi},
	}
}

func TestCrictlWalk(t *testing.T) {
	w := &walk{fixture: start(t, testnode.Options{})}
	for _, s := range steps() {
		if !t.Run(s.name, func(t *testing.T) { w.step(t, s) }) && s.needed() {
			return
		}
	}
}

// The server dies between any two steps; nothing is lost and no container notices.
func TestRestartBetweenSteps(t *testing.T) {
	w := &walk{fixture: start(t, testnode.Options{})}
	for _, s := range steps() {
		if !t.Run(s.name, func(t *testing.T) { w.step(t, s); w.restart("after " + s.name); w.stillWorks() }) && s.needed() {
			return
		}
	}
}

// step runs a step with its failures reported to the subtest.
func (w *walk) step(t *testing.T, s step) {
	outer := w.t
	w.t = t
	t.Cleanup(func() { w.t = outer })
	s.run(w)
}

// stillWorks checks after a restart that a running container can be exec'd into and is the same process as before.
func (w *walk) stillWorks() {
	if w.running {
		if got := w.exec(w.app, "cat /proc/1/comm"); got != "sh\n" {
			w.t.Errorf("pid 1 of the container is %q", got)
		}
	}
}

func (w *walk) version() {
	if out := w.crictl("version"); !strings.Contains(out, "RuntimeApiVersion:  v1") || foreign == "" && !strings.Contains(out, "RuntimeName:  cri-server") {
		w.t.Errorf("crictl version:\n%s", out)
	}
}

func (w *walk) info() {
	var info struct {
		Status struct {
			Conditions []struct {
				Type   string
				Status bool
			}
		}
		RuntimeHandlers []struct{ Name string }
	}
	w.parse(w.crictl("info"), &info)
	if len(info.Status.Conditions) < 2 {
		w.t.Errorf("conditions: %+v", info)
	}
	for _, c := range info.Status.Conditions {
		if !c.Status && strings.HasSuffix(c.Type, "Ready") {
			w.t.Errorf("%s is false", c.Type)
		}
	}
}

func (w *walk) parse(text string, v any) {
	w.t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		w.t.Fatalf("%v in:\n%s", err, text)
	}
}

func (w *walk) runtimeConfig() {
	if out := w.crictl("runtime-config"); !strings.Contains(out, "CGROUPFS") && !strings.Contains(out, "SYSTEMD") {
		w.t.Errorf("crictl runtime-config:\n%s", out)
	}
}

func (w *walk) pullTag() {
	for _, image := range []string{images.Busybox, images.DemoWeb} {
		if out := w.crictl("pull", registry+image); !strings.Contains(out, "up to date") {
			w.t.Errorf("crictl pull:\n%s", out)
		}
	}
}

func (w *walk) pullDigest() {
	var status struct {
		Status struct{ RepoDigests []string }
	}
	w.parse(w.crictl("inspecti", busybox), &status)
	if len(status.Status.RepoDigests) == 0 {
		w.t.Fatal("the image has no digest")
	}
	w.digest = status.Status.RepoDigests[0]
	w.crictl("pull", w.digest)
}

func (w *walk) images() {
	out := w.crictl("images")
	if !strings.Contains(out, "e2e-test-images/busybox") || !strings.Contains(out, "demo/web") {
		w.t.Errorf("crictl images:\n%s", out)
	}
	w.eventually("image file system usage", func() bool {
		var fs struct {
			Status struct {
				ImageFilesystems []struct {
					FsId      struct{ Mountpoint string }
					UsedBytes struct{ Value string }
				}
			}
		}
		w.parse(w.crictl("imagefsinfo"), &fs)
		f := fs.Status.ImageFilesystems
		return len(f) > 0 && f[0].UsedBytes.Value != "" && (foreign != "" || f[0].UsedBytes.Value != "0") && f[0].FsId.Mountpoint != ""
	})
}

func (w *walk) runp() {
	c := w.podConfig("walk")
	c.PortMappings = []*cri.PortMapping{{Protocol: cri.Protocol_TCP, ContainerPort: 8080, HostPort: 12080}}
	w.podFile = w.file("pod.json", c)
	w.pod = strings.TrimSpace(w.crictl("runp", w.podFile))
	w.ids = append(w.ids, w.pod)
}

func (w *walk) pods() {
	if out := w.crictl("pods", "--name", "walk", "--state", "ready", "-q"); strings.TrimSpace(out) != w.pod {
		w.t.Errorf("crictl pods: %q, want %s", out, w.pod)
	}
	var p struct {
		Status struct {
			State   string
			Network struct{ IP string }
		}
	}
	w.parse(w.crictl("inspectp", w.pod), &p)
	if p.Status.State != "SANDBOX_READY" || p.Status.Network.IP == "" {
		w.t.Errorf("inspectp: %+v", p)
	}
}

// beat prints numbers without a gap, so that a lost line shows, and reads lines from stdin.
const beat = `trap 'echo asked to stop; exit 7' TERM
(n=0; while :; do echo "beat $n"; n=$((n+1)); usleep 5000; done) &
while read line; do echo "read $line"; done
wait`

func (w *walk) create() {
	app := containerConfig("app", images.Busybox, "sh", "-c", beat)
	app.Stdin, app.Envs = true, []*cri.KeyValue{{Key: "WALK", Value: []byte("on foot")}}
	app.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 128 << 20, CpuQuota: 50000, CpuPeriod: 100000, CpuShares: 512}
	w.appFile = w.file("app.json", app)
	w.webFile = w.file("web.json", containerConfig("web", images.DemoWeb))
	w.app = strings.TrimSpace(w.crictl("create", w.pod, w.appFile, w.podFile))
	w.web = strings.TrimSpace(w.crictl("create", w.pod, w.webFile, w.podFile))
	w.ids = append(w.ids, w.app, w.web)
	if out := w.crictl("ps", "-a", "-q", "--state", "created", "--pod", w.pod); len(strings.Fields(out)) != 2 {
		w.t.Errorf("created containers: %q", out)
	}
}

func (w *walk) startBoth() {
	w.crictl("start", w.app, w.web)
	w.running = true
	if out := w.crictl("ps", "-q", "--pod", w.pod); len(strings.Fields(out)) != 2 {
		w.t.Errorf("running containers: %q", out)
	}
}

type inspected struct {
	Status struct {
		State, LogPath, ImageRef, Reason string
		ExitCode                         int
		Resources                        struct {
			Linux struct{ MemoryLimitInBytes, CpuQuota string }
		}
	}
}

func (w *walk) inspect() {
	var i inspected
	w.parse(w.crictl("inspect", w.app), &i)
	if i.Status.State != "CONTAINER_RUNNING" || !filepath.IsAbs(i.Status.LogPath) || i.Status.Resources.Linux.MemoryLimitInBytes != strconv.Itoa(128<<20) {
		w.t.Errorf("inspect: %+v", i)
	}
	w.beats = i.Status.LogPath
}

func (w *walk) stats() {
	w.eventually("stats of both containers", func() bool {
		var s struct {
			Stats []struct {
				CPU    struct{ UsageCoreNanoSeconds struct{ Value string } }
				Memory struct{ WorkingSetBytes struct{ Value string } }
			}
		}
		w.parse(w.crictl("stats", "-o", "json", "--pod", w.pod), &s)
		for _, c := range s.Stats {
			if c.CPU.UsageCoreNanoSeconds.Value == "" || c.Memory.WorkingSetBytes.Value == "" {
				return false
			}
		}
		return len(s.Stats) == 2
	})
	if out := w.crictl("statsp", "-o", "json", "--id", w.pod); !strings.Contains(out, "usageCoreNanoSeconds") {
		w.t.Errorf("statsp:\n%s", out)
	}
}

func (w *walk) update() {
	w.crictl("update", "--memory", strconv.Itoa(96<<20), "--cpu-quota", "70000", w.app)
	var i inspected
	w.parse(w.crictl("inspect", w.app), &i)
	if r := i.Status.Resources.Linux; r.MemoryLimitInBytes != strconv.Itoa(96<<20) || r.CpuQuota != "70000" {
		w.t.Errorf("resources after update: %+v", r)
	}
	got := w.exec(w.app, "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null || true")
	if !strings.Contains(got, strconv.Itoa(96<<20)) {
		w.t.Errorf("limit in the container: %q", got)
	}
}

func (w *walk) stop() {
	w.crictl("stop", "--timeout", "5", w.web)
	w.crictl("stop", "--timeout", "5", w.app)
	w.running = false
	var i inspected
	w.parse(w.crictl("inspect", w.app), &i)
	if i.Status.State != "CONTAINER_EXITED" {
		w.t.Errorf("after stop: %+v", i)
	}
}

// wholeLogs checks that no number is missing in what the container wrote, over all restarts.
func (w *walk) wholeLogs() {
	b, err := os.ReadFile(w.beats)
	if err != nil {
		w.t.Fatal(err)
	}
	next := 0
	for _, line := range strings.Split(strings.TrimRight(string(b), "\n"), "\n") {
		f := strings.SplitN(line, " ", 4)
		if len(f) != 4 || f[2] != "F" && f[2] != "P" {
			w.t.Fatalf("no CRI log line: %q", line)
		}
		if n, ok := strings.CutPrefix(f[3], "beat "); ok {
			if n != strconv.Itoa(next) {
				w.t.Fatalf("beat %d was expected, and %s is there", next, n)
			}
			next++
		}
	}
	if next < 20 {
		w.t.Errorf("only %d beats", next)
	}
}

func (w *walk) rm() {
	w.crictl("rm", w.app, w.web)
	if out := w.crictl("ps", "-a", "-q"); strings.TrimSpace(out) != "" {
		w.t.Errorf("containers after rm: %q", out)
	}
}

func (w *walk) stopp() {
	w.crictl("stopp", w.pod)
	if out := w.crictl("pods", "--state", "notready", "-q"); strings.TrimSpace(out) != w.pod {
		w.t.Errorf("pods that are not ready: %q", out)
	}
}

func (w *walk) rmp() {
	w.crictl("rmp", w.pod)
	if out := w.crictl("pods", "-q"); strings.TrimSpace(out) != "" {
		w.t.Errorf("pods after rmp: %q", out)
	}
}

func (w *walk) rmi() {
	w.crictl("rmi", registry+images.DemoWeb)
	w.crictl("rmi", w.digest)
	_, _ = w.tryCrictl("rmi", busybox) // gone with its digest, if that was its last name
	if out := w.crictl("images", "-q"); foreign == "" && strings.TrimSpace(out) != "" {
		w.t.Errorf("images after rmi: %q", out)
	}
}
