// Package rootfs describes a container's root file system and makes mounts from the description.
//
// A Rootfs is plain data: package imagestore produces it, records keep it, an engine mounts it. Nothing is mounted on
// the host for it unless somebody asks for that with MountAt.
package rootfs

// Rootfs is either a stack of overlay layers (Lower set) or one directory (Path set).
type Rootfs struct {
	// Lower are the read-only layer directories, topmost first, as overlayfs wants them. Absolute paths.
	Lower []string `json:"lower,omitempty"`
	// Upper and Work are the writable layer and overlayfs's work directory, siblings on one file system.
	// Both empty: the root is read-only.
	Upper string `json:"upper,omitempty"`
	Work  string `json:"work,omitempty"`
	// Options are further overlay options, such as "volatile" or "xino=off".
	Options []string `json:"options,omitempty"`
	// Path is a directory to be used as it is (snapshots without overlayfs).
	Path string `json:"path,omitempty"`
}
