package linux

import (
	"bytes"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// LoopMajor is the major number of loop devices (Documentation/admin-guide/devices.txt).
const LoopMajor = 7

// MaxLoopLabel is the length of the longest label of a loop device, in bytes:
// LO_NAME_SIZE of linux/loop.h, less the final zero.
const MaxLoopLabel = unix.LO_NAME_SIZE - 1

// LoopConfig is what a loop device is set up with.
type LoopConfig struct {
	// Backing is the open file or block device that holds the data.
	Backing Descriptor
	// Label is the name that LoopStatus has, of at most MaxLoopLabel bytes.
	// The kernel keeps it and makes no use of it.
	Label string
	// BlockSize is the logical block size in bytes; 0 stands for 512.
	BlockSize uint32
	// ReadOnly makes the loop driver itself refuse every write.
	ReadOnly bool
	// DirectIO reads and writes the backing file past the page cache.
	DirectIO bool
}

// FreeLoop returns the minor number of a loop device that was free a moment ago,
// and makes one where there is none (LOOP_CTL_GET_FREE). Others may take it first.
func FreeLoop() (uint32, error) {
	control, err := openAt(unix.AT_FDCWD, "/dev/loop-control", "/dev/loop-control", unix.O_RDWR)
	if err != nil {
		return 0, err
	}
	defer control.Close()
	minor, err := ignoringEINTR(func() (int, error) {
		return unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	})
	return uint32(minor), os.NewSyscallError("ioctl LOOP_CTL_GET_FREE", err) //nolint:gosec // Minor numbers have 20 bits.
}

// LoopPath returns the path of the loop device with the given minor number.
func LoopPath(minor uint32) string { return "/dev/loop" + strconv.FormatUint(uint64(minor), 10) }

// OpenLoop opens the loop device with the given minor number. One that is set up
// by a descriptor for reading refuses all writes (loop_configure in the kernel's
// drivers/block/loop.c).
func OpenLoop(minor uint32, forWriting bool) (*File, error) {
	return OpenFile(LoopPath(minor), forWriting)
}

// ConfigureLoop sets up an open, free loop device in one step (LOOP_CONFIGURE,
// Linux 5.8). Errors: EBUSY where another process took the device first.
func ConfigureLoop(loop Descriptor, config LoopConfig) error {
	setup := unix.LoopConfig{Fd: uint32(config.Backing.Fd()), Size: config.BlockSize} //nolint:gosec // Descriptors are int in the kernel.
	if config.ReadOnly {
		setup.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	if config.DirectIO {
		setup.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	copy(setup.Info.File_name[:MaxLoopLabel], config.Label)
	return os.NewSyscallError("ioctl LOOP_CONFIGURE", ioctl(loop, unix.LOOP_CONFIGURE, unsafe.Pointer(&setup)))
}

// LoopStatus is what an open loop device is set up with.
type LoopStatus struct {
	// Label is what it was labelled with.
	Label string
	// Backing is the file or device node that holds the data.
	Backing FileID
	// Device is the number of the block device that holds the data, if one does.
	Device DeviceNumber
	// Ends says that the device goes with its last user (LO_FLAGS_AUTOCLEAR).
	Ends bool
	// DirectIO says that the page cache of the backing file is passed by.
	DirectIO bool
	// ReadOnly says that it was set up so that all writes are refused, which nothing but
	// setting it up anew changes.
	ReadOnly bool
	// Offset and SizeLimit are the part of the backing file that is shown: both are 0
	// where that is all of it.
	Offset, SizeLimit uint64
	// PartScan says that the kernel makes partitions of what stands in it.
	PartScan bool
}

// Whole says that the device shows the whole backing file.
func (s LoopStatus) Whole() bool { return s.Offset == 0 && s.SizeLimit == 0 }

// StatusOfLoop tells what an open loop device is set up with
// (LOOP_GET_STATUS64). Errors: ENXIO where it is not set up.
func StatusOfLoop(loop Descriptor) (LoopStatus, error) {
	var status unix.LoopInfo64
	if err := ioctl(loop, unix.LOOP_GET_STATUS64, unsafe.Pointer(&status)); err != nil {
		return LoopStatus{}, os.NewSyscallError("ioctl LOOP_GET_STATUS64", err)
	}
	label, _, _ := bytes.Cut(status.File_name[:], []byte{0})
	return LoopStatus{
		Label:     string(label),
		Backing:   FileID{DeviceNumber{unix.Major(status.Device), unix.Minor(status.Device)}, status.Inode},
		Device:    DeviceNumber{unix.Major(status.Rdevice), unix.Minor(status.Rdevice)},
		Ends:      status.Flags&unix.LO_FLAGS_AUTOCLEAR != 0,
		DirectIO:  status.Flags&unix.LO_FLAGS_DIRECT_IO != 0,
		ReadOnly:  status.Flags&unix.LO_FLAGS_READ_ONLY != 0,
		Offset:    status.Offset,
		SizeLimit: status.Sizelimit,
		PartScan:  status.Flags&unix.LO_FLAGS_PARTSCAN != 0,
	}, nil
}

// ResetLoop has an open loop device show the whole backing file, under a label, and stay
// when its last user closes it (LOOP_SET_STATUS64). Whoever has the device open for
// writing may have changed each of these. The flag for partitions cannot be taken back
// (LOOP_SET_STATUS_CLEARABLE_FLAGS in the kernel's linux/loop.h).
func ResetLoop(loop Descriptor, label string) error {
	var status unix.LoopInfo64
	copy(status.File_name[:MaxLoopLabel], label)
	return os.NewSyscallError("ioctl LOOP_SET_STATUS64", ioctl(loop, unix.LOOP_SET_STATUS64, unsafe.Pointer(&status)))
}

// loopChangeFD is LOOP_CHANGE_FD of linux/loop.h, which golang.org/x/sys lacks.
const loopChangeFD = 0x4c06

// ChangeLoop has an open, read-only loop device show another file or device of the same
// size (LOOP_CHANGE_FD).
func ChangeLoop(loop, backing Descriptor) error {
	return os.NewSyscallError("ioctl LOOP_CHANGE_FD", ioctlValue(loop, loopChangeFD, backing.Fd()))
}

// SetLoopBlockSize sets the logical block size of an open loop device, in bytes
// (LOOP_SET_BLOCK_SIZE).
func SetLoopBlockSize(loop Descriptor, size uint32) error {
	return os.NewSyscallError("ioctl LOOP_SET_BLOCK_SIZE", ioctlValue(loop, unix.LOOP_SET_BLOCK_SIZE, uintptr(size)))
}

// SetLoopDirectIO has an open loop device pass the page cache of its backing file by
// (LOOP_SET_DIRECT_IO). Errors: EINVAL where the filesystem cannot.
func SetLoopDirectIO(loop Descriptor) error {
	return os.NewSyscallError("ioctl LOOP_SET_DIRECT_IO", ioctlValue(loop, unix.LOOP_SET_DIRECT_IO, 1))
}

// ioctlValue makes an ioctl whose argument is a number.
func ioctlValue(file Descriptor, request uint, value uintptr) error {
	_, err := ignoringEINTR(func() (int, error) { return 0, unix.IoctlSetInt(int(file.Fd()), request, int(value)) })
	return err
}

// ClearLoop detaches an open loop device from its backing file (LOOP_CLR_FD),
// or has the kernel do so when its last user closes it. Errors: ENXIO where it
// is not set up.
func ClearLoop(loop Descriptor) error {
	return os.NewSyscallError("ioctl LOOP_CLR_FD", ioctl(loop, unix.LOOP_CLR_FD, nil))
}

// RefreshLoop has an open loop device take over the present size of its backing
// file (LOOP_SET_CAPACITY).
func RefreshLoop(loop Descriptor) error {
	return os.NewSyscallError("ioctl LOOP_SET_CAPACITY", ioctl(loop, unix.LOOP_SET_CAPACITY, nil))
}
