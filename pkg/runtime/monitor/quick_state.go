package monitor

import (
	"time"

	"github.com/seed-9a14075a/cri-server/internal/quickjson"
)

func (s *State) quickRead(b []byte) bool {
	q := quickjson.NewReader(b)
	v := takeState(q)
	if q.Done() {
		*s = v
	}
	return q.Done()
}

func (e *Event) quickRead(b []byte) bool {
	q := quickjson.NewReader(b)
	var v Event
	q.Object(func(name []byte) {
		switch string(name) {
		case "seq":
			v.Seq = q.Uint64()
		case "type":
			v.Type = q.String()
		case "state":
			v.State = takeState(q)
		default:
			q.Refuse()
		}
	})
	if q.Done() {
		*e = v
	}
	return q.Done()
}

func takeState(q *quickjson.Reader) (s State) {
	q.Object(func(name []byte) {
		switch string(name) {
		case "id":
			s.ID = q.String()
		case "status":
			s.Status = Status(q.String())
		case "pid":
			s.Pid = q.Int()
		case "created_at":
			s.CreatedAt = readTime(q)
		case "started_at":
			s.StartedAt = readTime(q)
		case "finished_at":
			s.FinishedAt = readTime(q)
		case "exit_code":
			s.ExitCode = q.Int()
		case "signal":
			s.Signal = q.Int()
		case "exit_unknown":
			s.ExitUnknown = q.Bool()
		case "oom_killed":
			s.OOMKilled = q.Bool()
		case "start_error":
			s.StartError = q.String()
		case "tty":
			s.TTY = q.Bool()
		default:
			q.Refuse()
		}
	})
	return s
}

func readTime(q *quickjson.Reader) (t time.Time) {
	if t.UnmarshalJSON(q.Skip()) != nil {
		q.Refuse()
	}
	return t
}
