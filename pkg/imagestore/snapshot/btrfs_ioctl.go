package snapshot

import (
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl numbers and structures of include/uapi/linux/btrfs.h, ioctl type 0x94.
const (
	iocSubvolCreate  = 1<<30 | 4096<<16 | 0x94<<8 | 14 // _IOW(.., struct btrfs_ioctl_vol_args)
	iocSnapDestroy   = 1<<30 | 4096<<16 | 0x94<<8 | 15 // _IOW(.., struct btrfs_ioctl_vol_args)
	iocSnapCreateV2  = 1<<30 | 4096<<16 | 0x94<<8 | 23 // _IOW(.., struct btrfs_ioctl_vol_args_v2)
	iocTreeSearchV2  = 3<<30 | 112<<16 | 0x94<<8 | 17  // _IOWR(.., struct btrfs_ioctl_search_args_v2)
	iocGetSubvolInfo = 2<<30 | 504<<16 | 0x94<<8 | 60  // _IOR(.., struct btrfs_ioctl_get_subvol_info_args)
)

// volArgs is struct btrfs_ioctl_vol_args.
type volArgs struct {
	fd   int64
	name [4088]byte
}

// volArgsV2 is struct btrfs_ioctl_vol_args_v2.
type volArgsV2 struct {
	fd      int64
	transid uint64
	flags   uint64
	_       [4]uint64
	name    [4040]byte
}

// subvolInfo is the beginning of struct btrfs_ioctl_get_subvol_info_args, padded to its size.
type subvolInfo struct {
	treeID   uint64
	name     [256]byte
	parentID uint64
	dirID    uint64
	gen      uint64
	flags    uint64
	uuids    [3][16]byte
	ctransid uint64
	// otransid is the generation in which the subvolume was made.
	otransid uint64
	_        [144]byte
}

// searchArgs is struct btrfs_ioctl_search_args_v2 with room for its result.
type searchArgs struct {
	treeID                 uint64
	minObject, maxObject   uint64
	minOffset, maxOffset   uint64
	minTransid, maxTransid uint64
	minType, maxType       uint32
	items                  uint32
	_                      uint32
	_                      [4]uint64
	size                   uint64
	buf                    [64 << 10]byte
}

func ioctl(f *os.File, req uint, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(req), uintptr(arg))
	runtime.KeepAlive(f)
	if errno != 0 {
		return errno
	}
	return nil
}

// volumeIoctl calls one of the requests that name a subvolume in an open directory. field is the name in args.
func volumeIoctl[T volArgs | volArgsV2](path string, req uint, args *T, field []byte) error {
	base := filepath.Base(path)
	if len(base) >= len(field) {
		return unix.ENAMETOOLONG
	}
	copy(field, base)
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return ioctl(dir, req, unsafe.Pointer(args))
}

// Item types of a subvolume's tree, include/uapi/linux/btrfs_tree.h.
const (
	inodeItem    = 1
	extentData   = 108
	searchHeader = 32 // struct btrfs_ioctl_search_header
	firstObject  = 256
	lastObject   = math.MaxUint64 - 255
)

// writtenSince counts the new inodes, and the bytes of new extents, of a subvolume. Leaves of its tree that were not changed
// since are not read.
type writtenSince struct {
	after         uint64
	bytes, inodes int64
}

func (w *writtenSince) search(root *os.File) error {
	a := &searchArgs{minObject: firstObject, maxObject: lastObject, maxOffset: math.MaxUint64, minTransid: w.after + 1, maxTransid: math.MaxUint64, minType: inodeItem, maxType: extentData}
	for {
		a.items, a.size = math.MaxUint32, uint64(len(a.buf))
		if err := ioctl(root, iocTreeSearchV2, unsafe.Pointer(a)); err != nil {
			return err
		}
		if a.items == 0 {
			return nil
		}
		b := a.buf[:]
		for range a.items {
			if len(b) < searchHeader {
				return errors.New("the kernel's answer is cut off")
			}
			object, offset := binary.NativeEndian.Uint64(b[8:]), binary.NativeEndian.Uint64(b[16:])
			kind, n := binary.NativeEndian.Uint32(b[24:]), binary.NativeEndian.Uint32(b[28:])
			if int(n) > len(b)-searchHeader {
				return errors.New("the kernel's answer is cut off")
			}
			w.item(kind, b[searchHeader:searchHeader+n])
			b = b[searchHeader+n:]
			a.minObject, a.minType, a.minOffset = object, kind, offset
		}
		// The next key, in the order object, type, offset.
		if a.minOffset++; a.minOffset == 0 {
			if a.minType++; a.minType > extentData {
				a.minObject, a.minType = a.minObject+1, inodeItem
			}
		}
	}
}

// item counts one: a leaf that was changed has old items too.
func (w *writtenSince) item(kind uint32, b []byte) {
	if len(b) < 21 || binary.LittleEndian.Uint64(b) <= w.after { // both kinds begin with their generation
		return
	}
	switch kind {
	case inodeItem:
		w.inodes++
	case extentData: // struct btrfs_file_extent_item
		switch inline := b[20] == 0; {
		case inline:
			w.bytes += int64(binary.LittleEndian.Uint64(b[8:]))
		case len(b) >= 53 && binary.LittleEndian.Uint64(b[21:]) != 0: // a hole has no place on the disk
			w.bytes += int64(binary.LittleEndian.Uint64(b[45:]))
		}
	}
}
