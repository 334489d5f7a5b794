package rig

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// PartitionSize is the size of a partition of a disk in bytes.
const PartitionSize = 7 * MiB

// AddPartition makes the kernel see a partition of the disk, the first of which
// begins at 1 MiB, and returns the path of its node (BLKPG, linux/blkpg.h). No
// table is written. It goes with the test.
func (d *Disk) AddPartition(t testing.TB, number int32) string {
	t.Helper()
	partition := unix.BlkpgPartition{Start: MiB + int64(number-1)*PartitionSize, Length: PartitionSize, Pno: number}
	Must(t, d.blkpg(unix.BLKPG_ADD_PARTITION, &partition))
	t.Cleanup(func() {
		Eventually(t, func() error {
			err := d.blkpg(unix.BLKPG_DEL_PARTITION, &partition)
			if errors.Is(err, unix.ENXIO) {
				return nil
			}
			return err
		})
	})
	return d.PartitionPath(int(number))
}

// PartitionPath is the path of the node of a partition of the disk. Names that end
// with a digit are set off from the number (bdevname in the kernel's block/genhd.c).
func (d *Disk) PartitionPath(number int) string {
	if last := d.Path[len(d.Path)-1]; last >= '0' && last <= '9' {
		return fmt.Sprintf("%sp%d", d.Path, number)
	}
	return fmt.Sprintf("%s%d", d.Path, number)
}

func (d *Disk) blkpg(op int32, partition *unix.BlkpgPartition) error {
	disk, err := os.Open(d.Path)
	if err != nil {
		return err
	}
	defer disk.Close()
	arg := unix.BlkpgIoctlArg{Op: op, Datalen: int32(unsafe.Sizeof(*partition)), Data: (*byte)(unsafe.Pointer(partition))}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, disk.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return os.NewSyscallError("ioctl BLKPG", errno)
	}
	return nil
}
