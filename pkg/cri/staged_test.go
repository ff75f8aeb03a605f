package cri

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
)

// A call that takes something down tries all of it, so its error does not begin with what was tried last.
func TestStagedError(t *testing.T) {
	err := emptyServer(t).staged(t.Context(), "stop it", func(_ context.Context, op *operation.Op) error {
		op.Stage("network")
		err := fmt.Errorf("network: plugin: %w", errdefs.ErrUnavailable)
		op.Stage("files")
		return err
	})
	if err == nil || err.Error() != "network: plugin: unavailable" || status.Code(toStatus(err)) != codes.Unavailable {
		t.Errorf("%v", err)
	}
}

// Whoever leaves is told the stage, under the code that says that it was his time that ended.
func TestStagedDeadline(t *testing.T) {
	s := emptyServer(t)
	for want, leave := range map[codes.Code]func() (context.Context, context.CancelFunc){
		codes.DeadlineExceeded: func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(t.Context(), testns.Patience(50*time.Millisecond))
		},
		codes.Canceled: func() (context.Context, context.CancelFunc) { return context.WithCancel(t.Context()) },
	} {
		ctx, cancel := leave()
		end := make(chan struct{})
		err := s.staged(ctx, "stop it", func(_ context.Context, op *operation.Op) error {
			op.Stage("files")
			if want == codes.Canceled {
				cancel()
			}
			<-end
			return nil
		})
		if got := status.Convert(toStatus(err)); got.Code() != want || !strings.Contains(got.Message(), `still at stage "files"`) {
			t.Errorf("%v, want %v", err, want)
		}
		cancel()
		close(end)
		if err := s.ends.Abort(t.Context(), "stop it", nil); err != nil {
			t.Error(err)
		}
	}
}
