package cri

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/seed-9a14075a/cri-server/pkg/operation"
)

// endTimeout bounds a call that takes something down, whoever waits for it: kubelet waits 2 minutes, and what such a call
// waits for has shorter limits of its own.
const endTimeout = 4 * time.Minute

// newEnds returns the group of the calls that take something down or change it.
func (s *Server) newEnds() *operation.Group {
	return operation.NewGroup(operation.Options{Log: s.log, Keep: -1, Parallel: true})
}

// staged runs such a call apart from its caller, who may be told at his deadline at which stage it is even if the call itself
// can't end: it may be in a system call on a file system that answers no more. What was begun is finished. Calls with the same
// key join, so key says all that there is to be done.
func (s *Server) staged(ctx context.Context, key string, fn func(ctx context.Context, op *operation.Op) error) error {
	_, err := operation.Do(ctx, s.ends, key, endTimeout, func(ctx context.Context, op *operation.Op) (struct{}, error) {
		return struct{}{}, fn(ctx, op)
	})
	return err
}

// unique numbers the keys of calls that must not join.
var unique atomic.Uint64

func uniqueKey(what, id string) string { return fmt.Sprintf("%s %s #%d", what, id, unique.Add(1)) }
