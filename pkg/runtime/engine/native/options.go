package native

import (
	"strings"

	"golang.org/x/sys/unix"
)

// idmapping is what a mount's options say about id-mapping.
type idmapping int

const (
	idmapNone idmapping = iota
	idmapOne
	idmapRecursive
)

// propagation is a mount's propagation type; the zero value means that nothing is asked for.
type propagation struct {
	flag      uint64 // MS_PRIVATE and so on
	recursive bool
}

// mountOptions are the options of one mount, sorted by whom they concern.
type mountOptions struct {
	attrs, recursive attrChange // of the mount; of the mount and everything below it
	propagation      []propagation
	bind, rbind      bool
	remount, copyUp  bool
	idmap            idmapping
	filesystem       []option // for the file system itself
}

// attrChange is a change of MOUNT_ATTR_*, as mount_setattr(2) takes it.
type attrChange struct{ set, clear uint64 }

func (a attrChange) empty() bool { return a.set|a.clear == 0 }

// with adds one option's change; a later option wins.
func (a attrChange) with(o attrChange) attrChange {
	return attrChange{set: a.set&^o.clear | o.set, clear: (a.clear | o.clear) &^ (o.set &^ atime)}
}

// apply makes the change on the mount behind fd, and below it.
func (a attrChange) apply(fd int, recursive bool) error {
	if a.empty() {
		return nil
	}
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(fd, "", flags, &unix.MountAttr{Attr_set: a.set, Attr_clr: a.clear})
}

const atime = unix.MOUNT_ATTR__ATIME

// mountAttrs are the options that mean an attribute of the mount. Each of them has a recursive form that begins with
// an r (runtime-spec, config.md, "Linux mount options"). The three access time modes are one field: setting any of
// them clears the field.
var mountAttrs = map[string]attrChange{
	"ro":            {set: unix.MOUNT_ATTR_RDONLY},
	"rw":            {clear: unix.MOUNT_ATTR_RDONLY},
	"nosuid":        {set: unix.MOUNT_ATTR_NOSUID},
	"suid":          {clear: unix.MOUNT_ATTR_NOSUID},
	"nodev":         {set: unix.MOUNT_ATTR_NODEV},
	"dev":           {clear: unix.MOUNT_ATTR_NODEV},
	"noexec":        {set: unix.MOUNT_ATTR_NOEXEC},
	"exec":          {clear: unix.MOUNT_ATTR_NOEXEC},
	"nodiratime":    {set: unix.MOUNT_ATTR_NODIRATIME},
	"diratime":      {clear: unix.MOUNT_ATTR_NODIRATIME},
	"nosymfollow":   {set: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"symfollow":     {clear: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"relatime":      {set: unix.MOUNT_ATTR_RELATIME, clear: atime},
	"norelatime":    {set: unix.MOUNT_ATTR_RELATIME, clear: atime}, // the kernel's default is relatime again
	"noatime":       {set: unix.MOUNT_ATTR_NOATIME, clear: atime},
	"atime":         {set: unix.MOUNT_ATTR_RELATIME, clear: atime},
	"strictatime":   {set: unix.MOUNT_ATTR_STRICTATIME, clear: atime},
	"nostrictatime": {set: unix.MOUNT_ATTR_RELATIME, clear: atime},
}

var propagations = map[string]propagation{
	"private": {unix.MS_PRIVATE, false}, "rprivate": {unix.MS_PRIVATE, true},
	"shared": {unix.MS_SHARED, false}, "rshared": {unix.MS_SHARED, true},
	"slave": {unix.MS_SLAVE, false}, "rslave": {unix.MS_SLAVE, true},
	"unbindable": {unix.MS_UNBINDABLE, false}, "runbindable": {unix.MS_UNBINDABLE, true},
}

// meaningless are options that mean nothing to the kernel's mount calls, or its default.
var meaningless = map[string]bool{"": true, "defaults": true, "silent": true, "loud": true}

// parseOptions sorts a mount's options. What is none of the generic ones goes to the file system, which refuses what
// it doesn't know; a bind mount has no file system to give them to.
func parseOptions(typ string, opts []string) (mountOptions, error) {
	var o mountOptions
	for _, s := range opts {
		if a, ok := mountAttrs[s]; ok {
			o.attrs = o.attrs.with(a)
			continue
		}
		if p, ok := propagations[s]; ok {
			o.propagation = append(o.propagation, p)
			continue
		}
		if a, ok := mountAttrs[strings.TrimPrefix(s, "r")]; ok && s[0] == 'r' {
			o.recursive = o.recursive.with(a)
			continue
		}
		switch s {
		case "bind":
			o.bind = true
		case "rbind":
			o.bind, o.rbind = true, true
		case "remount":
			o.remount = true
		case "tmpcopyup":
			o.copyUp = true
		case "idmap":
			o.idmap = idmapOne
		case "ridmap":
			o.idmap = idmapRecursive
		default:
			if !meaningless[s] {
				k, v, _ := strings.Cut(s, "=")
				o.filesystem = append(o.filesystem, option{k, v})
			}
		}
	}
	if typ == "bind" || typ == "rbind" {
		o.bind, o.rbind = true, o.rbind || typ == "rbind"
	}
	return o, o.check(typ)
}

// superblock are options of any file system that can't be changed through a bind mount; runc and mount(8) ignore them
// there as well.
var superblock = map[string]bool{"sync": true, "async": true, "dirsync": true, "mand": true, "nomand": true,
	"lazytime": true, "nolazytime": true, "iversion": true, "noiversion": true, "acl": true, "noacl": true}

func (o *mountOptions) check(typ string) error {
	if o.copyUp && typ != "tmpfs" {
		return invalid("tmpcopyup on a mount of type %q", typ)
	}
	if !o.bind {
		if o.idmap != idmapNone {
			return invalid("idmap on a mount of type %q", typ)
		}
		return nil
	}
	for _, f := range o.filesystem {
		if !superblock[f.key] {
			return invalid("bind mount with the option %q", f.key)
		}
	}
	o.filesystem = nil
	return nil
}
