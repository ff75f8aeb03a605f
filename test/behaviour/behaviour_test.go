package behaviour

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestScore(t *testing.T) {
	s := Score{Only: regexp.MustCompile("^a")}
	s.Check(t.Context(), "a holds", func() error { return nil })
	s.Check(t.Context(), "a does not", func() error { return errors.New("no") })
	s.Check(t.Context(), "b is left out", func() error { t.Error("not to be run"); return nil })
	ended, end := context.WithCancel(t.Context())
	end()
	s.Check(ended, "a comes too late", func() error { t.Error("not to be run"); return nil })
	if s.String() != "1 passed, 1 failed" || s.Failed() != 1 {
		t.Error(s.String(), s.Failed())
	}
}

func TestUntil(t *testing.T) {
	no, tries := errors.New("no"), 0
	err := Until(t.Context(), time.Hour, time.Microsecond, func() error {
		if tries++; tries < 3 {
			return no
		}
		return nil
	})
	if err != nil || tries != 3 {
		t.Error(tries, err)
	}
	if err := Until(t.Context(), -1, time.Hour, func() error { return no }); !errors.Is(err, no) {
		t.Error(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := Until(ended, time.Hour, time.Hour, func() error { return no }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestWelcomed(t *testing.T) {
	page := "Welcome to nginx"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(page)) }))
	defer server.Close()
	at := strings.TrimPrefix(server.URL, "http://")
	if err := Welcomed(at); err != nil {
		t.Error(err)
	}
	page = "something else"
	if err := Welcomed(at); err == nil || !strings.Contains(err.Error(), page) {
		t.Error(err)
	}
	server.Close()
	if err := Welcomed(at); err == nil {
		t.Error("nobody is there")
	}
}
