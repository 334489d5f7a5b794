package linux

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BlockSize returns the size of an open block device in bytes (BLKGETSIZE64).
// It is 0, without an error, for a device that has gone and for one without a
// medium.
func BlockSize(device Descriptor) (uint64, error) {
	var bytes uint64
	err := ioctl(device, unix.BLKGETSIZE64, unsafe.Pointer(&bytes))
	return bytes, os.NewSyscallError("ioctl BLKGETSIZE64", err)
}

// goneOr returns ENODEV where an open block device has gone, and else err. Of one
// that has gone, a read past the page cache returns nothing and no error, as at its
// end, a write ENOSPC, and an ioctl on a range EINVAL, since its size is 0
// (blkdev_read_iter, blkdev_write_iter and blk_ioctl_discard in the kernel's block/).
func goneOr(device Descriptor, err error) error {
	if size, sizeErr := BlockSize(device); sizeErr == nil && size == 0 {
		return unix.ENODEV
	}
	return err
}

// DiskSeq returns the sequence number of the disk behind an open block device
// (BLKGETDISKSEQ, Linux 5.15). The kernel never gives one out twice between two
// boots, whereas device numbers and names are reused. Errors: ENOTTY on older
// kernels.
func DiskSeq(device Descriptor) (uint64, error) {
	var seq uint64
	err := ioctl(device, unix.BLKGETDISKSEQ, unsafe.Pointer(&seq))
	return seq, os.NewSyscallError("ioctl BLKGETDISKSEQ", err)
}

// BlockReadOnly reports whether an open block device refuses all writes (BLKROGET).
func BlockReadOnly(device Descriptor) (bool, error) {
	var readOnly int32
	err := ioctl(device, unix.BLKROGET, unsafe.Pointer(&readOnly))
	return readOnly != 0, os.NewSyscallError("ioctl BLKROGET", err)
}

// LogicalBlockSize returns the smallest unit of I/O of an open block device in
// bytes (BLKSSZGET).
func LogicalBlockSize(device Descriptor) (uint32, error) {
	var bytes uint32
	err := ioctl(device, unix.BLKSSZGET, unsafe.Pointer(&bytes))
	return bytes, os.NewSyscallError("ioctl BLKSSZGET", err)
}

func ioctl(file Descriptor, request uint, arg unsafe.Pointer) error {
	_, err := ignoringEINTR(func() (int, error) {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), uintptr(request), uintptr(arg)); errno != 0 {
			return 0, errno
		}
		return 0, nil
	})
	return err
}
