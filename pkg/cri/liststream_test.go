package cri

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// containersOf makes one container per size, in bytes of its image's name.
func containersOf(sizes ...int) []*runtimeapi.Container {
	var list []*runtimeapi.Container
	for i, n := range sizes {
		list = append(list, &runtimeapi.Container{Id: fmt.Sprint(i), ImageRef: strings.Repeat("x", n)})
	}
	return list
}

func repeat(n, size int) []int { return slices.Repeat([]int{size}, n) }

func TestSendBatches(t *testing.T) {
	for name, tt := range map[string]struct {
		sizes    []int
		messages int
	}{
		"none":                     {nil, 0},
		"one":                      {[]int{10}, 1},
		"small ones share":         {repeat(1000, 500), 1},
		"just fits":                {[]int{batchBytes/2 - 20, batchBytes/2 - 20}, 1},
		"just does not":            {[]int{batchBytes / 2, batchBytes / 2}, 2},
		"a large one goes alone":   {[]int{10, 3 * batchBytes, 10}, 3},
		"only large ones":          {repeat(4, batchBytes), 4},
		"as on a large node":       {repeat(10000, 1000), 10},
		"large at the end":         {append(repeat(10, 10), 2*batchBytes), 2},
		"nothing in them":          {repeat(3, 0), 1},
		"large at the very begin.": {append([]int{2 * batchBytes}, repeat(10, 10)...), 2},
	} {
		t.Run(name, func(t *testing.T) {
			items := containersOf(tt.sizes...)
			var got []*runtimeapi.Container
			messages := 0
			err := sendBatches(context.Background(), slices.Values(items), func(b []*runtimeapi.Container) error {
				messages++
				if len(b) == 0 {
					t.Error("an empty message")
				}
				if size := proto.Size(&runtimeapi.StreamContainersResponse{Containers: b}); size > batchBytes && len(b) > 1 {
					t.Errorf("message of %d items has %d bytes", len(b), size)
				}
				got = append(got, b...)
				return nil
			})
			if err != nil || !slices.Equal(got, items) {
				t.Errorf("%d of %d items, %v", len(got), len(items), err)
			}
			if messages != tt.messages {
				t.Errorf("%d messages, want %d", messages, tt.messages)
			}
		})
	}
}

func TestSendBatchesEnds(t *testing.T) {
	t.Run("with the context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		taken := 0
		err := sendBatches(ctx, func(yield func(*runtimeapi.Container) bool) {
			for _, c := range containersOf(repeat(100, batchBytes)...) {
				if taken++; taken == 3 {
					cancel()
				}
				if !yield(c) {
					return
				}
			}
		}, func([]*runtimeapi.Container) error { return nil })
		if !errors.Is(err, context.Canceled) || taken != 3 {
			t.Errorf("%v after %d items", err, taken)
		}
	})
	t.Run("with the context, nothing to send", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		err := sendBatches(ctx, slices.Values(containersOf()), func([]*runtimeapi.Container) error { return nil })
		if !errors.Is(err, context.Canceled) {
			t.Error(err) // a list cut short must not look like a whole one
		}
	})
	t.Run("when sending fails", func(t *testing.T) {
		sent, broken := 0, errors.New("broken")
		err := sendBatches(context.Background(), slices.Values(containersOf(repeat(9, batchBytes)...)), func([]*runtimeapi.Container) error {
			sent++
			return broken
		})
		if !errors.Is(err, broken) || sent != 1 {
			t.Errorf("%v after %d messages", err, sent)
		}
	})
}
