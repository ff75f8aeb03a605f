package cri

import (
	"context"
	"errors"
	"net/http"
	"slices"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/admin"
	"github.com/seed-9a14075a/cri-server/pkg/config"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
)

// ServerOptions are the interceptors that the gRPC server must be made with.
func (s *Server) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.UnaryInterceptor(Interceptor(s.log)), grpc.StreamInterceptor(StreamInterceptor(s.log))}
}

// Register offers both CRI services.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	runtimeapi.RegisterRuntimeServiceServer(r, s)
	runtimeapi.RegisterImageServiceServer(r, s)
}

// Admin is the operator's API.
func (s *Server) Admin() http.Handler {
	return admin.Handler(s.images, func() []operation.Timeline {
		return slices.Concat(s.sandboxes.Operations(), s.containers.Operations(), s.ends.Running())
	}, s.Collect, s.log)
}

// Reload takes the live options of a new configuration. The log level is the daemon's own; certs.d is read for each pull.
func (s *Server) Reload(cfg *config.Config) {
	if err := s.images.SetPinned(cfg.Image.Pinned); err != nil {
		s.log.Error("pinned images are not changed", "error", err)
	}
}

// Drain ends the calls that have no end of their own: sessions of exec, attach and port-forward, streams of events.
func (s *Server) Drain() {
	s.events.close()
	s.streaming.Close()
}

// Close waits for running operations, ends the background work and lets go of the stores. Pods run on. Drain must have
// been called.
func (s *Server) Close(ctx context.Context) error {
	var err error
	for _, wait := range []func(context.Context) error{s.ends.Wait, s.sandboxes.Wait, s.containers.Wait} {
		if e := wait(ctx); err == nil {
			err = e
		}
	}
	_ = s.trim.stop()
	s.stop()
	s.tasks.Wait()
	if err == nil {
		s.condense(ctx)
	}
	for _, f := range []func() error{s.sandboxes.Close, s.images.Close, s.network.Close, s.monitor.Close} {
		if e := f(); err == nil {
			err = e
		}
	}
	return err
}

// condense leaves records as an older server can read them. A disk that does not answer does not keep the server.
func (s *Server) condense(ctx context.Context) {
	done := make(chan error, 1)
	go func() { done <- errors.Join(s.sandboxes.Condense(ctx), s.containers.Condense(ctx)) }() // ends with the process at the latest
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		s.log.Warn("a cri-server from before records were appended may not be able to read all of them; this one can", "error", err)
	}
}
