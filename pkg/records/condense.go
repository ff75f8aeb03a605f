package records

import (
	"context"
	"errors"
	"strings"
)

// Condense leaves the last record only in files that hold several, and no spare files: nothing new is made meanwhile. What can't be read stays as it is. lock keeps the owner of an
// object from writing its record meanwhile. It goes on after errors, until ctx ends.
func (s *Store[T]) Condense(ctx context.Context, lock func(ctx context.Context, id string) (unlock func(), err error)) error {
	names, err := s.names()
	if err != nil {
		return err
	}
	errs := []error{s.spares.Clean()}
	for _, n := range names {
		id, ok := strings.CutSuffix(n, suffix)
		if !ok || checkID(id) != nil {
			continue
		}
		unlock, err := lock(ctx, id)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		errs = append(errs, s.condense(id))
		unlock()
	}
	return errors.Join(errs...)
}

func (s *Store[T]) condense(id string) error {
	b, err := readFile(s.path(id))
	if err != nil {
		return nil //nolint:nilerr // gone, or for Load to tell
	}
	record, err := last(b)
	if err != nil || len(record) == len(b) || verify(record) != nil {
		return nil //nolint:nilerr // for Load to tell
	}
	return s.replace(id, record, true)
}
