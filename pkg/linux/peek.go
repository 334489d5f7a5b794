package linux

import (
	"os"

	"golang.org/x/sys/unix"
)

// PeekPath tells of what is at a path only what the kernel knows already, and follows it
// where it is a link: no server is asked (AT_STATX_DONT_SYNC in statx(2)). The answer has
// the type, the device's number and the identity of the file.
func PeekPath(path string) (FileInfo, error) {
	return peek(unix.AT_FDCWD, path, 0, path)
}

// Peek is PeekPath for what a descriptor refers to.
func Peek(file Descriptor) (FileInfo, error) {
	return peek(int(file.Fd()), "", unix.AT_EMPTY_PATH, file.Name())
}

func peek(dirfd int, path string, flags int, label string) (FileInfo, error) {
	var st unix.Statx_t
	if err := unix.Statx(dirfd, path, flags|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE|unix.STATX_INO, &st); err != nil {
		return FileInfo{}, &os.PathError{Op: "statx", Path: label, Err: err}
	}
	return FileInfo{
		Type:   fileType(uint32(st.Mode)),
		Device: DeviceNumber{st.Rdev_major, st.Rdev_minor},
		ID:     FileID{DeviceNumber{st.Dev_major, st.Dev_minor}, st.Ino},
	}, nil
}

// Descriptor returns a descriptor for the same open file as one of the process has
// (pidfd_getfd(2), since Linux 5.6). To close it flushes the file where its filesystem does
// that on each close, and may take as long as its server likes.
func (p *Process) Descriptor(fd int) (*File, error) {
	own, err := unix.PidfdGetfd(p.fd, fd, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_getfd", err)
	}
	return &File{own, p.Name() + ": a descriptor"}, nil
}

// OpenWithoutWaiting opens what is at a path for reading, and waits neither for a device
// nor for a pipe.
func OpenWithoutWaiting(path string) (*File, error) {
	return openAt(unix.AT_FDCWD, path, path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
}
