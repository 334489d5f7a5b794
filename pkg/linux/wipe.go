package linux

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Discard tells an open block device that nobody needs a range of it any more
// (BLKDISCARD). What is read from there afterwards is the device's choice.
//
// The descriptor must be open for writing; start and length are in bytes and
// multiples of the logical block size, also for the functions below. Errors:
// EOPNOTSUPP where the device cannot; ENODEV where it has gone.
func Discard(device Descriptor, start, length uint64) error {
	return rangeIoctl(device, unix.BLKDISCARD, start, length, "ioctl BLKDISCARD")
}

// SecureDiscard does the same and has the device destroy all copies of the range
// that it may have made (BLKSECDISCARD). Errors: EOPNOTSUPP where it cannot.
func SecureDiscard(device Descriptor, start, length uint64) error {
	return rangeIoctl(device, unix.BLKSECDISCARD, start, length, "ioctl BLKSECDISCARD")
}

// ZeroOut fills a range of an open block device with zeros (BLKZEROOUT), which
// the kernel writes itself where the device has no command for it.
func ZeroOut(device Descriptor, start, length uint64) error {
	return rangeIoctl(device, unix.BLKZEROOUT, start, length, "ioctl BLKZEROOUT")
}

func rangeIoctl(device Descriptor, request uint, start, length uint64, name string) error {
	arg := [2]uint64{start, length}
	if err := ioctl(device, request, unsafe.Pointer(&arg)); err != nil {
		return os.NewSyscallError(name, goneOr(device, err))
	}
	return nil
}
