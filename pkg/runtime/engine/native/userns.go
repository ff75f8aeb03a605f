package native

import (
	"context"
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// NewUserNS makes a user namespace (user_namespaces(7)) with these mappings. It lives as long as the returned file, the
// caller's, is open or somebody is in it.
func (e *Engine) NewUserNS(ctx context.Context, uids, gids []specs.LinuxIDMapping) (ns *os.File, err error) {
	s, err := e.fork(launch{})
	if err != nil {
		return nil, fmt.Errorf("user namespace: %w", err)
	}
	defer s.kill()
	defer s.guard(ctx)()
	if err := s.newUserNS(idMap{uids, gids}); err != nil {
		return nil, err
	}
	return s.userNS()
}
