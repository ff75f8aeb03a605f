package handler

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

func TestTable(t *testing.T) {
	runc := Handler{Name: "runc", OCI: &monitor.OCIRuntime{Path: "/usr/sbin/runc"}}
	table, err := NewTable([]Handler{{Name: "native"}, runc}, "runc")
	if err != nil {
		t.Fatal(err)
	}
	if h, err := table.Resolve(""); err != nil || h.OCI == nil {
		t.Errorf("the default handler is not runc: %+v, %v", h, err)
	}
	if h, err := table.Resolve("native"); err != nil || h.OCI != nil {
		t.Errorf("native: %+v, %v", h, err)
	}
	if _, err := table.Resolve("kata"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("unknown handler: %v", err)
	}
	if got := table.Names(); len(got) != 2 || got[0] != "native" || got[1] != "runc" {
		t.Errorf("names: %v", got)
	}
	if _, err := NewTable([]Handler{runc}, "native"); err == nil {
		t.Error("a default that is not there was accepted")
	}
	if _, err := NewTable([]Handler{{}}, ""); err == nil {
		t.Error("a handler without a name was accepted")
	}
}

func TestFeatures(t *testing.T) {
	dir := t.TempDir()
	oci := func(name, script string) Handler {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
		return Handler{Name: name, OCI: &monitor.OCIRuntime{Path: p}}
	}
	node := Features{RecursiveReadOnly: true}
	for name, tt := range map[string]struct {
		h    Handler
		want Features
	}{
		"native":     {Handler{Name: "native"}, node},
		"configured": {Handler{Configured: []string{UserNamespaces}}, Features{UserNamespaces: true}},
		"asked": {oci("new", `echo '{"mountOptions":["ro","rro"],"linux":{"namespaces":["user"],"mountExtensions":{"idmap":{"enabled":true}}}}'`),
			Features{RecursiveReadOnly: true, UserNamespaces: true}},
		"old":     {oci("old", `echo 'unknown command features' >&2; exit 1`), Features{}},
		"garbage": {oci("garbage", `echo 'no json'`), Features{}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := tt.h.Features(node); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestStateDir(t *testing.T) {
	table, err := NewTable([]Handler{{Name: "runc", OCI: &monitor.OCIRuntime{Path: "/bin/true", Root: "/run/r"}}, {Name: "native"},
		{Name: "bare", OCI: &monitor.OCIRuntime{Path: "/bin/true"}}}, "native")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"runc": "/run/r/id", "": "", "native": "", "bare": "", "gone": ""} {
		if got := table.StateDir(name, "id"); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if got := (*Table)(nil).StateDir("runc", "id"); got != "" {
		t.Error(got)
	}
}
