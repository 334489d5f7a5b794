package linux

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// AddPartition makes the kernel see a partition of an open disk (BLKPG,
// linux/blkpg.h). Nothing is written to the disk. Start and length are in bytes
// and multiples of its logical block size. Errors: EBUSY where the number is
// taken or the place overlaps another partition.
func AddPartition(disk Descriptor, number int, start, length uint64) error {
	return partitionIoctl(disk, unix.BLKPG_ADD_PARTITION, number, start, length, "ioctl BLKPG_ADD_PARTITION")
}

// ResizePartition changes the length in bytes of a partition that may be in use.
// Errors: EINVAL where the start is another; EBUSY where it would overlap another
// partition; ENXIO where there is none of that number.
func ResizePartition(disk Descriptor, number int, start, length uint64) error {
	return partitionIoctl(disk, unix.BLKPG_RESIZE_PARTITION, number, start, length, "ioctl BLKPG_RESIZE_PARTITION")
}

// DeletePartition makes the kernel forget a partition. Errors: EBUSY while
// anybody has it open, exclusively or not; ENXIO where there is none of that
// number.
func DeletePartition(disk Descriptor, number int) error {
	return partitionIoctl(disk, unix.BLKPG_DEL_PARTITION, number, 0, 0, "ioctl BLKPG_DEL_PARTITION")
}

func partitionIoctl(disk Descriptor, op int32, number int, start, length uint64, name string) error {
	partition := unix.BlkpgPartition{Start: int64(start), Length: int64(length), Pno: int32(number)} //nolint:gosec // Sizes of disks have 63 bits, numbers of partitions 8.
	arg := unix.BlkpgIoctlArg{Op: op, Datalen: int32(unsafe.Sizeof(partition)), Data: (*byte)(unsafe.Pointer(&partition))}
	return os.NewSyscallError(name, ioctl(disk, unix.BLKPG, unsafe.Pointer(&arg)))
}
