package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"k8s.io/klog/v2"

	"github.com/seed-9a14075a/cri-server/pkg/config"
)

const (
	// maxMessage is what kubelet accepts from us, too.
	maxMessage = 16 << 20
	// streamWorkers serve the calls of a quiet node without a new goroutine, whose stack would have to grow first, for each.
	// Calls beyond them get one.
	streamWorkers = 4
	// window is how many bytes a client may send before they are read. That it is fixed keeps gRPC from measuring the line with
	// each call, a ping and its answer, which on a unix socket costs more than it can tell.
	window = 1 << 20
	// rpcGrace is how long calls may run on after SIGTERM. Operations have stopGrace more to end; what is still running
	// then is rolled back by the next start.
	rpcGrace  = 20 * time.Second
	stopGrace = 20 * time.Second
	// adminSocket is below the state directory.
	adminSocket = "admin.sock"
)

// service is what the daemon serves.
type service interface {
	// ServerOptions are the interceptors.
	ServerOptions() []grpc.ServerOption
	Register(r grpc.ServiceRegistrar)
	// Admin is served on the admin socket.
	Admin() http.Handler
	// Reload takes the live options of a new configuration.
	Reload(cfg *config.Config)
	// Drain ends event streams and other calls that have no end of their own.
	Drain()
	// Close waits for operations and lets go of everything but the pods.
	Close(ctx context.Context) error
}

func newServe() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon",
		Args:  noArgs,
	}
	configFlags(cmd, &file)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := config.Load(config.Sources{File: file, Flags: cmd.Flags()})
		if err != nil {
			return err
		}
		log, level := newLog(cfg)
		slog.SetDefault(log)
		klog.SetSlogLogger(log) // the streaming server's
		d := daemon{log: log, level: level, new: newService}
		return d.serve(cmd.Context(), cfg)
	}
	return cmd
}

func newLog(cfg *config.Config) (*slog.Logger, *slog.LevelVar) {
	level := &slog.LevelVar{}
	setLevel(level, cfg)
	o := &slog.HandlerOptions{Level: level}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, o)), level
	}
	return slog.New(slog.NewTextHandler(os.Stderr, o)), level
}

func setLevel(level *slog.LevelVar, cfg *config.Config) {
	// The configuration's values are slog's own names.
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		level.Set(slog.LevelInfo)
	}
}

// daemon is one run of serve.
type daemon struct {
	log   *slog.Logger
	level *slog.LevelVar
	new   func(ctx context.Context, cfg *config.Config, log *slog.Logger) (service, error)
	// notify tells systemd; nil is sdNotify.
	notify func(state string)
	// delayed is how long the process was kept from running; nil is runDelay.
	delayed func() time.Duration
}

// serve runs until ctx ends, which is a wish to stop, or until serving fails.
func (d *daemon) serve(ctx context.Context, cfg *config.Config) error {
	if d.notify == nil {
		d.notify = sdNotify(d.log)
	}
	if d.delayed == nil {
		d.delayed = runDelay
	}
	for _, dir := range []struct {
		path string
		mode os.FileMode
	}{{cfg.State, 0o711}, {cfg.Root, 0o700}} {
		lock, err := lockDir(dir.path, dir.mode)
		if err != nil {
			return err
		}
		defer lock.Close()
	}
	listener, err := criListener(ctx, cfg.Socket, cfg.SocketMode, cfg.SocketGroup)
	if err != nil {
		return err
	}
	defer listener.Close()
	admin, err := listenUnix(ctx, filepath.Join(cfg.State, adminSocket), 0o600, 0)
	if err != nil {
		return err
	}
	defer admin.Close()
	svc, err := d.new(ctx, cfg, d.log)
	if err != nil {
		return err
	}
	err = d.run(ctx, cfg, svc, listener, admin)
	// ctx is over; what is left to do has its own time.
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
	defer cancel()
	return errors.Join(err, svc.Close(cctx))
}

// run serves svc on both sockets and returns when neither is served any more.
func (d *daemon) run(ctx context.Context, cfg *config.Config, svc service, cri, admin net.Listener) error {
	g := grpc.NewServer(append([]grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.InitialWindowSize(window),
		grpc.InitialConnWindowSize(window),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	}, svc.ServerOptions()...)...)
	svc.Register(g)
	h := &http.Server{Handler: svc.Admin(), ReadHeaderTimeout: 10 * time.Second,
		ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelWarn)}

	// Before anybody learns that it may be sent: nobody's SIGHUP ends the process.
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, unix.SIGHUP)
	defer signal.Stop(hup)

	failed := make(chan error, 2)
	go func() {
		err := g.Serve(cri)
		if errors.Is(err, grpc.ErrServerStopped) { // it was stopped before it began
			err = nil
		}
		failed <- wrap("cri socket", err)
	}()
	go func() {
		err := h.Serve(admin)
		if errors.Is(err, http.ErrServerClosed) {
			err = nil
		}
		failed <- wrap("admin socket", err)
	}()
	d.log.Info("serving", "version", version, "socket", cri.Addr().String(), "root", cfg.Root, "state", cfg.State)
	d.notify("READY=1\nSTATUS=serving " + cri.Addr().String())
	stopWatchdog := d.watchdog(cri.Addr().String())

	running, err := d.loop(ctx, cfg, svc, hup, failed)
	stopWatchdog()
	d.notify("STOPPING=1")
	svc.Drain()
	d.stopServers(g, h)
	for range running {
		err = errors.Join(err, <-failed)
	}
	return err
}

// loop answers signals until it is time to stop; running is how many of the two servers are still to report.
func (d *daemon) loop(ctx context.Context, cfg *config.Config, svc service, hup <-chan os.Signal, failed <-chan error) (running int, err error) {
	for {
		select {
		case <-hup:
			cfg = d.reload(cfg, svc)
		case err := <-failed:
			return 1, err
		case <-ctx.Done():
			d.log.Info("stopping")
			return 2, nil
		}
	}
}

// stopServers lets running calls end, for a while; a second SIGTERM cuts that short.
func (d *daemon) stopServers(g *grpc.Server, h *http.Server) {
	again, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	ctx, cancel := context.WithTimeout(again, rpcGrace)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.GracefulStop()
	}()
	_ = h.Shutdown(ctx)
	h.Close()
	select {
	case <-done:
	case <-ctx.Done():
		d.log.Warn("calls are cut off", "after", rpcGrace)
		g.Stop()
		<-done
	}
}

// reload reads the configuration again. A bad one changes nothing.
func (d *daemon) reload(cfg *config.Config, svc service) *config.Config {
	d.notify(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", monotonic()/1000))
	defer d.notify("READY=1")
	next, changes, err := cfg.Reload()
	if err != nil {
		d.log.Error("configuration not reloaded", "error", err)
		return cfg
	}
	for _, c := range changes {
		msg := "configuration changed"
		if !c.Live {
			msg = "configuration changed: restart cri-server for it to take effect"
		}
		d.log.Info(msg, "option", c.Key, "old", c.Old, "new", c.New)
	}
	if len(changes) == 0 {
		d.log.Info("configuration reloaded, nothing changed")
	}
	setLevel(d.level, next)
	svc.Reload(next)
	return next
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
