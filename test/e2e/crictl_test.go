package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// walked are the commands of crictl that TestCrictlWalk runs.
var walked = strings.Fields("attach create exec images imagefsinfo info inspect inspecti inspectp logs pods port-forward ps pull rm rmi rmp runp runtime-config start stats statsp stop stopp update version")

// others are the rest; each gets a pod with a running container.
var others = map[string]func(w *walk){
	"checkpoint": func(w *walk) {
		out, err := w.tryCrictl("checkpoint", "--export", filepath.Join(w.Dir, "tmp", "checkpoint.tar"), w.app)
		if err != nil && !strings.Contains(err.Error(), "Unimplemented") {
			w.t.Errorf("%v\n%s", err, out)
		}
	},
	"completion": func(w *walk) {
		if out := w.crictl("completion", "bash"); !strings.Contains(out, "complete ") {
			w.t.Errorf("%s", out)
		}
	},
	"config": func(w *walk) {
		if out := w.crictl("config", "--list"); !strings.Contains(out, "debug") {
			w.t.Errorf("%s", out)
		}
	},
	"events": func(w *walk) {
		client := w.Crictl(w.ctx, "events")
		lines := w.lines(client)
		defer w.endClient(client)
		// Nothing says when the client has subscribed: let there be events until it tells of one.
		for i := range 10 {
			w.runContainer(w.pod, w.podConfig("every"), containerConfig(fmt.Sprintf("event-%d", i), images.Busybox, "sleep", "1000"))
			select {
			case l := <-lines:
				if !strings.Contains(l, "{") {
					w.t.Errorf("event %q", l)
				}
				return
			case <-time.After(time.Second):
			}
		}
		w.t.Error("no event")
	},
	"metricdescs": func(w *walk) {
		if out := w.crictl("metricdescs"); !strings.Contains(out, "container_cpu_usage_seconds_total") {
			w.t.Errorf("%s", out)
		}
	},
	"metricsp": func(w *walk) {
		if out := w.crictl("metricsp"); !strings.Contains(out, w.pod) || !strings.Contains(out, "container_memory_usage_bytes") {
			w.t.Errorf("%.2000s", out)
		}
	},
	"run": func(w *walk) {
		pod := w.file("run-pod.json", w.podConfig("run"))
		out := strings.Fields(w.crictl("run", "--no-pull", w.file("run.json", containerConfig("run", images.Busybox, "sleep", "1000")), pod))
		if len(out) != 1 {
			w.t.Fatalf("%q", out)
		}
		w.ids = append(w.ids, out[0])
		if got := w.exec(out[0], "echo here"); got != "here\n" {
			w.t.Errorf("%q", got)
		}
	},
	"update-runtime-config": func(w *walk) { w.crictl("update-runtime-config", "--pod-cidr", "10.85.0.0/16") },
}

// Every command of crictl works, once.
func TestCrictlEveryCommand(t *testing.T) {
	if foreign != "" {
		t.Skip("only cri-server answers all of them")
	}
	f := start(t, testnode.Options{})
	w := &walk{fixture: f}
	w.pod, w.app = f.idle("every")
	for _, name := range commands(t, f) {
		run := others[name]
		if run == nil {
			if !slices.Contains(walked, name) {
				t.Errorf("no test runs crictl %s", name)
			}
			continue
		}
		t.Run(name, func(t *testing.T) {
			w.t = t
			defer func() { w.t = f.t }()
			run(w)
		})
	}
	f.t = t
	if _, err := f.RemovePods(f.ctx); err != nil {
		t.Error(err)
	}
	_ = os.Remove(filepath.Join(f.Dir, "tmp", "checkpoint.tar"))
}

// commands lists crictl's commands.
func commands(t *testing.T, f *fixture) []string {
	t.Helper()
	_, help, ok := strings.Cut(f.crictl("--help"), "\nCOMMANDS:\n")
	help, _, _ = strings.Cut(help, "\n\n")
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^   ([a-z-]+)`).FindAllStringSubmatch(help, -1) {
		if m[1] != "help" {
			names = append(names, m[1])
		}
	}
	if !ok || len(names) < 30 {
		t.Fatalf("crictl's commands: %q", names)
	}
	return names
}
