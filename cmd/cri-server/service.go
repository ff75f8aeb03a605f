package main

import (
	"context"
	"log/slog"

	"github.com/seed-9a14075a/cri-server/pkg/config"
	"github.com/seed-9a14075a/cri-server/pkg/cri"
)

// newService puts the server together; package cri does the work.
func newService(ctx context.Context, cfg *config.Config, log *slog.Logger) (service, error) {
	s, err := cri.New(ctx, cfg, version, log)
	if err != nil {
		return nil, err // not a nil *cri.Server in a non-nil interface
	}
	return s, nil
}
