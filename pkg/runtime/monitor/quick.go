package monitor

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/seed-9a14075a/cri-server/internal/quickjson"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// What is written for every container is written without reflection. The JSON is what encoding/json makes of it, which has the
// last word in what is seldom there.

// appender is a message that writes itself.
type appender interface {
	appendJSON(b []byte) ([]byte, error)
}

// seldom appends a field by encoding/json.
func seldom(b []byte, name string, v any) ([]byte, error) {
	text, err := json.Marshal(v)
	return append(quickjson.Key(b, name), text...), err
}

func (s State) appendJSON(b []byte) ([]byte, error) {
	b = quickjson.String(quickjson.Key(append(b, '{'), "id"), s.ID)
	b = quickjson.String(quickjson.Key(b, "status"), string(s.Status))
	b = quickjson.Int(quickjson.Key(b, "pid"), s.Pid)
	for _, t := range []struct {
		name string
		time time.Time
		must bool
	}{{"created_at", s.CreatedAt, true}, {"started_at", s.StartedAt, false}, {"finished_at", s.FinishedAt, false}} {
		if t.time.IsZero() && !t.must {
			continue
		}
		var ok bool
		if b, ok = quickjson.Time(quickjson.Key(b, t.name), t.time); !ok {
			return nil, fmt.Errorf("%s %v: no time that JSON has", t.name, t.time)
		}
	}
	b = quickjson.Int(quickjson.Key(b, "exit_code"), s.ExitCode)
	if s.Signal != 0 {
		b = quickjson.Int(quickjson.Key(b, "signal"), s.Signal)
	}
	if s.ExitUnknown {
		b = quickjson.Bool(quickjson.Key(b, "exit_unknown"), true)
	}
	if s.OOMKilled {
		b = quickjson.Bool(quickjson.Key(b, "oom_killed"), true)
	}
	if s.StartError != "" {
		b = quickjson.String(quickjson.Key(b, "start_error"), s.StartError)
	}
	if s.TTY {
		b = quickjson.Bool(quickjson.Key(b, "tty"), true)
	}
	return append(b, '}'), nil
}

func (e Event) appendJSON(b []byte) ([]byte, error) {
	b = quickjson.Uint(quickjson.Key(append(b, '{'), "seq"), e.Seq)
	b = quickjson.String(quickjson.Key(b, "type"), e.Type)
	b, err := e.State.appendJSON(quickjson.Key(b, "state"))
	return append(b, '}'), err
}

func (k kept) appendJSON(b []byte) ([]byte, error) {
	b = append(b, '{')
	if k.ID != "" {
		b = quickjson.String(quickjson.Key(b, "id"), k.ID)
	}
	if len(k.Data) > 0 {
		b = append(quickjson.Key(b, "data"), k.Data...) // JSON that was just made
	}
	for _, f := range []struct {
		name string
		set  bool
	}{{"forget", k.Forget}, {"journal", k.Journal}, {"synced", k.Synced}, {"still", k.Still}} {
		if f.set {
			b = quickjson.Bool(quickjson.Key(b, f.name), true)
		}
	}
	return append(b, '}'), nil
}

func (v *savedContainer) appendJSON(b []byte) (_ []byte, err error) {
	b = quickjson.Int(quickjson.Key(append(b, '{'), "version"), v.Version)
	if b, err = v.State.appendJSON(quickjson.Key(b, "state")); err != nil {
		return nil, err
	}
	if v.OCI != nil {
		if b, err = seldom(b, "oci", v.OCI); err != nil {
			return nil, err
		}
	}
	if v.Cgroup != (engine.PackedCgroup{}) {
		b = v.Cgroup.AppendJSON(quickjson.Key(b, "cgroup"))
	}
	if v.OOM != (engine.PackedCgroup{}) {
		b = v.OOM.AppendJSON(quickjson.Key(b, "oom"))
	}
	if v.OOMKills != 0 {
		b = quickjson.Uint(quickjson.Key(b, "oom_kills"), v.OOMKills)
	}
	if v.OwnPids {
		b = quickjson.Bool(quickjson.Key(b, "own_pids"), true)
	}
	if v.OOMScoreAdj != nil {
		b = quickjson.Int(quickjson.Key(b, "oom_score_adj"), *v.OOMScoreAdj)
	}
	if len(v.UIDs) > 0 {
		if b, err = seldom(b, "uids", v.UIDs); err != nil {
			return nil, err
		}
	}
	if len(v.GIDs) > 0 {
		if b, err = seldom(b, "gids", v.GIDs); err != nil {
			return nil, err
		}
	}
	if b, err = v.appendEngine(quickjson.Key(b, "engine")); err != nil {
		return nil, err
	}
	b = quickjson.Int(quickjson.Key(b, "engine_files"), v.EngineFiles)
	b = v.Stdio.AppendJSON(quickjson.Key(b, "stdio"))
	b = append(quickjson.Key(b, "has"), '[')
	for i, has := range v.Has {
		if i > 0 {
			b = append(b, ',')
		}
		b = quickjson.Bool(b, has)
	}
	return append(b, ']', '}'), nil
}

// appendEngine appends what the engine has made, as it is.
func (v *savedContainer) appendEngine(b []byte) (_ []byte, err error) {
	switch {
	case v.Engine == nil:
		return append(b, "null"...), nil
	case v.Engine.Data == nil:
		b = append(quickjson.Key(append(b, '{'), "data"), "null"...)
	default:
		b = append(quickjson.Key(append(b, '{'), "data"), v.Engine.Data...)
	}
	if len(v.Engine.Sessions) > 0 {
		if b, err = seldom(b, "sessions", v.Engine.Sessions); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}
