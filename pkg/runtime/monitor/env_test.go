package monitor

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestEnvironmentsOfAnyBytes(t *testing.T) {
	for name, env := range map[string][]string{
		"none":      nil,
		"utf-8":     {"A=1", "B=ü"},
		"not utf-8": {"A=1", "B=\xff\xfe", "C=\x80"},
	} {
		t.Run(name, func(t *testing.T) {
			process := &specs.Process{Args: []string{"x"}, Env: env}
			create := &CreateRequest{ID: "id", Spec: &specs.Spec{Process: process, Hostname: "h"}, Stdin: true}
			var gotCreate CreateRequest
			overTheWire(t, create, &gotCreate)
			if d := cmp.Diff(create, &gotCreate); d != "" {
				t.Errorf("create: %s", d)
			}
			call := &stdioCall{ID: "id", Seccomp: []byte{1}}
			call.Process, call.Env = SplitEnv(process)
			var got stdioCall
			overTheWire(t, call, &got)
			got.Env.Restore(got.Process)
			if got.ID != call.ID || string(got.Seccomp) != string(call.Seccomp) || !cmp.Equal(got.Process, process) {
				t.Errorf("exec: %s", cmp.Diff(process, got.Process))
			}
			if !cmp.Equal(process.Env, env) {
				t.Error("the caller's process was changed")
			}
		})
	}
}

func overTheWire(t *testing.T, from, to any) {
	t.Helper()
	b, err := json.Marshal(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, to); err != nil {
		t.Fatal(err)
	}
}
