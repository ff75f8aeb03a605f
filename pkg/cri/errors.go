package cri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"
)

// reasons are errors that kubelet recognizes by the beginning of the message and makes a pod's waiting reason of.
var reasons = []error{
	crierrors.ErrRegistryUnavailable, crierrors.ErrSignatureValidationFailed, crierrors.ErrRROUnsupported, crierrors.ErrImageVolumeMountFailed,
}

// toStatus gives an error its gRPC code. kubelet acts on NotFound, DeadlineExceeded, Unavailable and Unimplemented; an
// error of no kind is Unknown.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	for _, reason := range reasons {
		if errors.Is(err, reason) && !strings.HasPrefix(err.Error(), reason.Error()) {
			err = fmt.Errorf("%w: %w", reason, err)
		}
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, err.Error())
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, err.Error())
	}
	return errgrpc.ToGRPC(err)
}

// invalid is an error of the request itself.
func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// Interceptor is the one layer around every call: it keeps a panic from ending the server, maps errors, and logs.
func Interceptor(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
		begin := time.Now()
		defer func() {
			if p := recover(); p != nil {
				log.Error("panic", "call", info.FullMethod, "panic", p, "stack", string(debug.Stack()))
				err = status.Errorf(codes.Internal, "%s: internal error: %v", info.FullMethod, p)
			}
			logCall(ctx, log, info.FullMethod, begin, err)
		}()
		ctx, cancel := ahead(ctx)
		defer cancel()
		resp, err = handle(ctx, req)
		return resp, toStatus(err)
	}
}

// ahead ends a little before the caller's deadline: so that the caller learns at what stage the time was over, and not only that
// it was.
func ahead(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, deadline.Add(-min(time.Until(deadline)/20, 100*time.Millisecond)))
}

// StreamInterceptor is Interceptor for streaming calls.
func StreamInterceptor(log *slog.Logger) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
		begin := time.Now()
		defer func() {
			if p := recover(); p != nil {
				log.Error("panic", "call", info.FullMethod, "panic", p, "stack", string(debug.Stack()))
				err = status.Errorf(codes.Internal, "%s: internal error: %v", info.FullMethod, p)
			}
			logCall(stream.Context(), log, info.FullMethod, begin, err)
		}()
		return toStatus(handle(srv, stream))
	}
}

// logCall tells of failures; a NotFound is an answer that kubelet asks for every second, not a failure.
func logCall(ctx context.Context, log *slog.Logger, method string, begin time.Time, err error) {
	level := slog.LevelDebug
	if code := status.Code(err); code != codes.OK && code != codes.NotFound && code != codes.Canceled && code != codes.Unimplemented {
		level = slog.LevelWarn
	}
	if !log.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{slog.String("call", method), slog.Duration("took", time.Since(begin))}
	if err != nil {
		attrs = append(attrs, slog.String("error", err.Error()))
	}
	log.LogAttrs(ctx, level, "cri", attrs...)
}
