package native

import (
	"context"
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// HoldUserNS makes a user namespace (user_namespaces(7)) with these mappings and a process that holds it until release is
// called or ctx ends. The path is the one in /proc/PID/ns that everybody takes for a namespace.
func (e *Engine) HoldUserNS(ctx context.Context, uids, gids []specs.LinuxIDMapping) (path string, release func(), err error) {
	s, err := e.fork(launch{})
	if err != nil {
		return "", nil, fmt.Errorf("user namespace: %w", err)
	}
	unguard := s.guard(ctx)
	release = func() {
		unguard()
		s.kill()
	}
	if err = s.settled(); err == nil {
		err = s.newUserNS(idMap{uids, gids})
	}
	if err != nil {
		release()
		return "", nil, err
	}
	return fmt.Sprintf("/proc/%d/ns/user", s.child.Pid()), release, nil
}

func (e *Engine) newUserNS(ctx context.Context, ids idMap) (*os.File, error) {
	s, err := e.fork(launch{})
	if err != nil {
		return nil, err
	}
	defer s.kill()
	defer s.guard(ctx)()
	if err := s.settled(); err != nil {
		return nil, err
	}
	if err := s.newUserNS(ids); err != nil {
		return nil, err
	}
	return s.userNS()
}
