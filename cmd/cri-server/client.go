package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/config"
)

// configFlags adds --config and the flag of each option.
func configFlags(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "config", "", "configuration `FILE` (default "+config.DefaultFile+", where it exists)")
	config.BindFlags(cmd.Flags())
}

// endpoint is how a command finds the server: by the same configuration.
type endpoint struct {
	file   string
	socket string
	state  string
}

func (e *endpoint) flags(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.StringVar(&e.file, "config", "", "the server's configuration `FILE`, for its socket")
	f.StringVar(&e.socket, "socket", "", "the server's CRI `SOCKET` (default: as configured)")
	f.StringVar(&e.state, "state", "", "the server's state `DIRECTORY` (default: as configured)")
}

// load fills in from the configuration what no flag names.
func (e *endpoint) load() error {
	if e.socket != "" && e.state != "" {
		return nil
	}
	cfg, err := config.Load(config.Sources{File: e.file})
	if err != nil {
		return err
	}
	if e.socket == "" {
		e.socket = cfg.Socket
	}
	if e.state == "" {
		e.state = cfg.State
	}
	return nil
}

// client is a connection to the server's CRI.
type client struct {
	runtimeapi.RuntimeServiceClient
	runtimeapi.ImageServiceClient
	conn *grpc.ClientConn
}

func (e *endpoint) dial() (*client, error) {
	if err := e.load(); err != nil {
		return nil, err
	}
	conn, err := dial(e.socket)
	if err != nil {
		return nil, err
	}
	return &client{runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn), conn}, nil
}

func (c *client) Close() error { return c.conn.Close() }

func dial(socket string, more ...grpc.DialOption) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix://"+socket, append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage))}, more...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", socket, err)
	}
	return conn, nil
}

// explain takes gRPC's wrapping off an error, which says nothing to who reads it, and says so when nobody answers.
func (e *endpoint) explain(err error) error {
	s, ok := status.FromError(err)
	switch {
	case err == nil || !ok:
		return err
	case s.Code() == codes.Unavailable:
		reason := s.Message()
		if _, after, ok := strings.Cut(reason, "Error while dialing: "); ok {
			reason = strings.TrimSuffix(after, `"`)
		}
		return fmt.Errorf("no server answers at %s: %s", e.socket, reason)
	case s.Code() == codes.DeadlineExceeded:
		return fmt.Errorf("the server at %s did not answer in time", e.socket)
	}
	return errors.New(s.Message())
}

// stateText makes SANDBOX_READY or CONTAINER_RUNNING a word.
func stateText(s string) string {
	s = strings.TrimPrefix(strings.TrimPrefix(s, "SANDBOX_"), "CONTAINER_")
	return strings.ToLower(s)
}

func join(list []string) string { return strings.Join(list, ", ") }
