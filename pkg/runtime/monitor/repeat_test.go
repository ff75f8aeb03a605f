package monitor

import (
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
)

// What an error means stays what it was, but for a create whose first try is in the way of the second.
func TestAgain(t *testing.T) {
	none := fmt.Errorf("cgroup: %w", errdefs.ErrNotFound)
	there := fmt.Errorf("c: %w", errdefs.ErrAlreadyExists)
	for name, c := range map[string]struct {
		try  int
		kind kind
		err  error
		want error
	}{
		"first":          {0, kindCreate, none, errdefs.ErrNotFound},
		"create":         {1, kindCreate, none, errdefs.ErrUnavailable},
		"create, exists": {1, kindCreate, there, errdefs.ErrAlreadyExists},
		"other call":     {2, kindStart, none, errdefs.ErrNotFound},
	} {
		err := again(c.try, c.kind, c.err)
		if !errors.Is(err, c.want) || errors.Is(err, errRepeated) != (c.try > 0) || errdefs.IsNotFound(err) != (c.want == errdefs.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := again(1, kindCreate, nil); err != nil {
		t.Error(err)
	}
}
