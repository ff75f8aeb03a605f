// Package cri is the gRPC edge: the CRI v1 RuntimeService and ImageService.
//
// It validates requests, translates between CRI messages and what the packages below keep, and maps their errors to
// gRPC codes; nothing else in the project knows those codes. It also wires the packages together (New), and carries the
// news of cri-monitor to sandboxes and containers.
package cri

import (
	"context"
	"log/slog"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/cgroupdriver"
	"github.com/seed-9a14075a/cri-server/pkg/config"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/network"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
	"github.com/seed-9a14075a/cri-server/pkg/runtime"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/handler"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/spec"
	"github.com/seed-9a14075a/cri-server/pkg/sandbox"
	"github.com/seed-9a14075a/cri-server/pkg/streaming"
)

// Server answers the CRI. It is safe for concurrent use.
type Server struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	cfg        *config.Config
	log        *slog.Logger
	host       *spec.Host
	handlers   *handler.Table
	monitor    *monitor.Client
	cgroups    cgroupdriver.Driver
	network    network.Network
	images     imagestore.Store
	sandboxes  *sandbox.Sandboxes
	containers *runtime.Containers
	streaming  *streaming.Server
	events     eventBus
	trim       trimmer
	ends       *operation.Group // see staged
	version    string           // semantic
	started    time.Time

	stop  context.CancelFunc
	tasks sync.WaitGroup
}
