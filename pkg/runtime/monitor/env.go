package monitor

import (
	"encoding/json"
	"slices"
	"unicode/utf8"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// JSON can't carry an environment that is not UTF-8, which the CRI allows since 0.37 (KeyValue.value is bytes). Such an
// environment travels beside the spec, as bytes.

// MarshalJSON implements json.Marshaler.
func (r CreateRequest) MarshalJSON() ([]byte, error) {
	type plain CreateRequest
	out := struct {
		plain
		Env EnvBytes `json:"env_bytes,omitempty"`
	}{plain: plain(r)}
	if r.Spec != nil {
		if p, env := SplitEnv(r.Spec.Process); env != nil {
			s := *r.Spec
			s.Process = p
			out.Spec, out.Env = &s, env
		}
	}
	return json.Marshal(out)
}

// UnmarshalJSON implements json.Unmarshaler.
func (r *CreateRequest) UnmarshalJSON(b []byte) error {
	type plain CreateRequest
	in := struct {
		*plain
		Env EnvBytes `json:"env_bytes"`
	}{plain: (*plain)(r)}
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	if r.Spec != nil {
		in.Env.Restore(r.Spec.Process)
	}
	return nil
}

// EnvBytes is an environment that JSON can't carry as text; nil where it can.
type EnvBytes [][]byte

// SplitEnv returns the process as JSON can carry it, and its environment apart where that is not UTF-8. p is not changed.
func SplitEnv(p *specs.Process) (*specs.Process, EnvBytes) {
	if p == nil || !slices.ContainsFunc(p.Env, func(e string) bool { return !utf8.ValidString(e) }) {
		return p, nil
	}
	env := make(EnvBytes, len(p.Env))
	for i, e := range p.Env {
		env[i] = []byte(e)
	}
	without := *p
	without.Env = nil
	return &without, env
}

// Restore puts the environment back into the process; it does nothing if e is nil.
func (e EnvBytes) Restore(p *specs.Process) {
	if e == nil || p == nil {
		return
	}
	p.Env = make([]string, len(e))
	for i, b := range e {
		p.Env[i] = string(b)
	}
}
