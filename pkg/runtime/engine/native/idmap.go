package native

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mapIDs gives a bind mount its id mapping: the mount's own, or, for the idmap options alone, the container's.
func (b *builder) mapIDs(m *mountPoint) error {
	ids := idMap{m.UIDMappings, m.GIDMappings}
	own := len(ids.uids) > 0 || len(ids.gids) > 0
	if !own && m.idmap == idmapNone {
		return nil
	}
	if own && (len(ids.uids) == 0 || len(ids.gids) == 0) {
		return invalid("uidMappings and gidMappings go together")
	}
	ns := b.userNS
	if own {
		var err error
		if ns, err = b.helperNS(ids); err != nil {
			return err
		}
	}
	if ns == nil {
		return invalid("idmap without mappings in a container without a user namespace")
	}
	flags := uint(unix.AT_EMPTY_PATH)
	if m.idmap == idmapRecursive {
		flags |= unix.AT_RECURSIVE
	}
	err := unix.MountSetattr(m.source, "", flags, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())})
	if err != nil {
		return fmt.Errorf("id-mapped mount (its file system may not support them): %w", err)
	}
	return nil
}

// helperNS makes a user namespace with a mapping, or takes the container's if that has the same.
func (b *builder) helperNS(ids idMap) (*os.File, error) {
	key := formatMap(ids.uids) + "/" + formatMap(ids.gids)
	if b.userNS != nil && key == formatMap(b.ids.uids)+"/"+formatMap(b.ids.gids) {
		return b.userNS, nil
	}
	if f := b.helpers[key]; f != nil {
		return f, nil
	}
	ns, err := b.engine.newUserNS(b.ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("mapping: %w", err)
	}
	if b.helpers == nil {
		b.helpers = map[string]*os.File{}
	}
	b.helpers[key] = ns
	return ns, nil
}
