package oci

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
)

func mountAt(fs rootfs.Rootfs, target string) error {
	if fs.Path != "" {
		return unix.Mount(fs.Path, target, "", unix.MS_BIND|unix.MS_REC, "")
	}
	data := "lowerdir=" + strings.Join(fs.Lower, ":")
	if fs.Upper != "" {
		data += ",upperdir=" + fs.Upper + ",workdir=" + fs.Work
	}
	return unix.Mount("overlay", target, "overlay", 0, data)
}
