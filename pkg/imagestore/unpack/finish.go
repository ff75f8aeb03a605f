package unpack

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// finish sets the directories' times, which writing into them changed, and counts.
func (a *applier) finish() (Result, error) {
	n, err := a.workers.wait()
	if err != nil {
		return Result{}, err
	}
	a.bytes += n
	if err := a.manifest.flush(); err != nil {
		return Result{}, fmt.Errorf("manifest: %w", err)
	}
	if _, ok := a.dirs["."]; !ok {
		a.dirs["."] = dirTimes{}
	}
	for path, d := range a.dirs {
		fd, closeIt, err := a.openDirOnce(path)
		if err != nil {
			return Result{}, fmt.Errorf("directory %q: %w", path, err)
		}
		err = a.finishDir(fd, d)
		if closeIt {
			_ = unix.Close(fd)
		}
		if err != nil {
			return Result{}, fmt.Errorf("directory %q: %w", path, err)
		}
	}
	a.root.forget()
	if a.recount {
		var err error
		if a.bytes, a.inodes, err = UsageAt(a.root.fd); err != nil {
			return Result{}, fmt.Errorf("count: %w", err)
		}
	}
	m := Marks{Form: a.opt.Marks, Whiteouts: paths(a.whiteouts), Opaques: paths(a.opaques), Implied: paths(a.implied), Links: a.links}
	return Result{Bytes: a.bytes, Inodes: a.inodes, Marks: m, SkippedDevices: a.skipped}, nil
}

func (a *applier) openDirOnce(path string) (fd int, closeIt bool, err error) {
	if path == "." {
		return a.root.fd, false, nil
	}
	fd, err = a.root.openat2(path, openDir)
	return fd, true, err
}

func (a *applier) finishDir(fd int, d dirTimes) error {
	ts := d.times // an implied directory gets the epoch: the same layer unpacks to the same tree
	if err := futimens(fd, ts); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	a.bytes += st.Blocks * 512
	a.inodes++
	return nil
}

func ptr(ts *[2]unix.Timespec) unsafe.Pointer { return unsafe.Pointer(ts) }
