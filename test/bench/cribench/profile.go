package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
)

// saveProfile asks cri-server for a profile, if profiles are wanted: see net/http/pprof. Nothing of other runtimes.
func (d *daemon) saveProfile(ctx context.Context, name, which string) error {
	if d.o.profile == "" || d.monitor == "" {
		return nil
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(d.state, "state", "admin.sock"))
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://cri-server/debug/pprof/"+which, nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(req)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if err := os.MkdirAll(d.o.profile, 0o755); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(d.o.profile, filepath.Base(d.dir)+"-"+name))
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(f, answer.Body)
	return err
}
