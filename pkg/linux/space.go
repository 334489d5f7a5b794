package linux

import (
	"encoding/binary"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// FileID names a file for as long as it is open somewhere: its filesystem's
// device and its inode.
type FileID struct {
	Device DeviceNumber
	Inode  uint64
}

// FreeSpace returns how many bytes the filesystem of an open file can still take
// from an ordinary user (fstatfs(2), f_bavail), and its size.
func FreeSpace(file Descriptor) (available, total uint64, err error) {
	var st unix.Statfs_t
	_, err = ignoringEINTR(func() (int, error) { return 0, unix.Fstatfs(int(file.Fd()), &st) })
	if err != nil {
		return 0, 0, &os.PathError{Op: "statfs", Path: file.Name(), Err: err}
	}
	unit := uint64(st.Frsize) //nolint:gosec // The size of a block is positive.
	return st.Bavail * unit, st.Blocks * unit, nil
}

// IsReadOnly reports whether the filesystem of an open file is mounted read-only, or
// has become so by itself (fstatfs(2), ST_RDONLY).
func IsReadOnly(file Descriptor) (bool, error) {
	var st unix.Statfs_t
	_, err := ignoringEINTR(func() (int, error) { return 0, unix.Fstatfs(int(file.Fd()), &st) })
	if err != nil {
		return false, &os.PathError{Op: "statfs", Path: file.Name(), Err: err}
	}
	return st.Flags&unix.ST_RDONLY != 0, nil
}

// DirectIOBlock returns the size in bytes of the smallest blocks that a regular file is read
// and written in past the page cache (O_DIRECT): 0 where the kernel does not say it, as before
// Linux 6.1 (statx(2), STATX_DIOALIGN). Nothing is read. Errors: EINVAL where the filesystem
// cannot do so at all.
func DirectIOBlock(file Descriptor) (uint32, error) {
	direct, err := openAt(unix.AT_FDCWD, descriptorPath(file), file.Name(), unix.O_RDONLY|unix.O_DIRECT)
	if err != nil {
		return 0, err
	}
	defer direct.Close()
	var st unix.Statx_t
	if err := unix.Statx(direct.fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st); err != nil {
		return 0, &os.PathError{Op: "statx", Path: file.Name(), Err: err}
	}
	return st.Dio_offset_align, nil
}

// OpenFile opens a file or device for reading, or for reading and writing.
func OpenFile(path string, forWriting bool) (*File, error) {
	flags := unix.O_RDONLY
	if forWriting {
		flags = unix.O_RDWR
	}
	return openAt(unix.AT_FDCWD, path, path, flags)
}

// Truncate gives a file a size in bytes; what is added is a hole (ftruncate(2)).
func Truncate(file Descriptor, size uint64) error {
	_, err := ignoringEINTR(func() (int, error) {
		return 0, unix.Ftruncate(int(file.Fd()), int64(size)) //nolint:gosec // What is too large is refused (EFBIG, EINVAL).
	})
	if err != nil {
		return &os.PathError{Op: "truncate", Path: file.Name(), Err: err}
	}
	return nil
}

// Allocate makes the first size bytes of a file stored: what is not yet, reads
// zero, and a later write to it needs no more space (fallocate(2)). A shorter
// file grows. Errors: ENOSPC; EOPNOTSUPP where the filesystem cannot.
func Allocate(file Descriptor, size uint64) error {
	_, err := ignoringEINTR(func() (int, error) {
		return 0, unix.Fallocate(int(file.Fd()), 0, 0, int64(size)) //nolint:gosec // What is too large is refused (EFBIG, EINVAL).
	})
	if err != nil {
		return &os.PathError{Op: "fallocate", Path: file.Name(), Err: err}
	}
	return nil
}

// CloneFile makes an empty file share all data of another on the same
// filesystem, until one of them is written to (ioctl_ficlone(2)). Errors:
// EOPNOTSUPP, ENOTTY or EINVAL where the filesystem cannot.
func CloneFile(to, from Descriptor) error {
	_, err := ignoringEINTR(func() (int, error) {
		return 0, unix.IoctlFileClone(int(to.Fd()), int(from.Fd()))
	})
	return os.NewSyscallError("ioctl FICLONE", err)
}

// KeepInPlace has a file on btrfs overwrite its data in place, for which space
// that was allocated is enough (FS_NOCOW_FL, ioctl_iflags(2)). The file must be
// empty. Other filesystems do so in any case: on them it does nothing.
func KeepInPlace(file Descriptor) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(file.Fd()), &st); err != nil {
		return &os.PathError{Op: "statfs", Path: file.Name(), Err: err}
	}
	if uint32(st.Type) != unix.BTRFS_SUPER_MAGIC { //nolint:gosec // Magic numbers have 32 bits.
		return nil
	}
	const noCopyOnWrite = 0x00800000 // FS_NOCOW_FL of linux/fs.h.
	flags := int32(0)
	if err := ioctl(file, unix.FS_IOC_GETFLAGS, unsafe.Pointer(&flags)); err != nil {
		return os.NewSyscallError("ioctl FS_IOC_GETFLAGS", err)
	}
	flags |= noCopyOnWrite
	return os.NewSyscallError("ioctl FS_IOC_SETFLAGS", ioctl(file, unix.FS_IOC_SETFLAGS, unsafe.Pointer(&flags)))
}

// Lock locks an open file against everybody else who locks it, in this process
// too, until it is closed (flock(2)). Errors: EWOULDBLOCK where somebody has.
func Lock(file Descriptor) error {
	_, err := ignoringEINTR(func() (int, error) {
		return 0, unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	})
	if err != nil {
		return &os.PathError{Op: "flock", Path: file.Name(), Err: err}
	}
	return nil
}

// Sync writes what is cached of a file or block device to its medium (fsync(2)).
func Sync(file Descriptor) error {
	_, err := ignoringEINTR(func() (int, error) { return 0, unix.Fsync(int(file.Fd())) })
	if err != nil {
		return &os.PathError{Op: "fsync", Path: file.Name(), Err: err}
	}
	return nil
}

// The request of FS_IOC_FIEMAP and the layout of what it fills in
// (linux/fiemap.h): a header of 32 bytes, then extents of 56.
const (
	fiemapRequest      = 0xc020660b
	fiemapSync         = 0x1
	fiemapHeader       = 32
	fiemapExtent       = 56
	fiemapBatch        = 512
	fiemapExtentLast   = 0x1
	fiemapExtentShared = 0x2000
)

// SharedSize returns how many bytes of a file are stored once for it and others,
// so that writing them takes new space (FS_IOC_FIEMAP). Errors: EOPNOTSUPP where
// the filesystem does not tell; then it shares none.
func SharedSize(file Descriptor) (uint64, error) {
	var shared, start uint64
	buffer := make([]byte, fiemapHeader+fiemapBatch*fiemapExtent)
	order := binary.NativeEndian
	for {
		clear(buffer[:fiemapHeader])
		order.PutUint64(buffer[0:], start)
		order.PutUint64(buffer[8:], ^uint64(0)-start)
		order.PutUint32(buffer[16:], fiemapSync)
		order.PutUint32(buffer[24:], fiemapBatch)
		if err := ioctl(file, fiemapRequest, unsafe.Pointer(&buffer[0])); err != nil {
			return 0, os.NewSyscallError("ioctl FS_IOC_FIEMAP", err)
		}
		count := int(order.Uint32(buffer[20:]))
		if count == 0 {
			return shared, nil
		}
		for extent := range min(count, fiemapBatch) {
			at := buffer[fiemapHeader+extent*fiemapExtent:]
			length, flags := order.Uint64(at[16:]), order.Uint32(at[40:])
			if flags&fiemapExtentShared != 0 {
				shared += length
			}
			if flags&fiemapExtentLast != 0 {
				return shared, nil
			}
			start = order.Uint64(at[0:]) + length
		}
	}
}
