package linux

import (
	"os"

	"golang.org/x/sys/unix"
)

// MemoryFile makes a file of zeros that is in memory alone, and goes with its last
// descriptor (memfd_create(2)). The name is for whoever lists open files.
func MemoryFile(name string, size uint64) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	file := os.NewFile(uintptr(fd), name) //nolint:gosec // The kernel gives out small numbers.
	if err := Truncate(file, size); err != nil {
		file.Close() //nolint:errcheck,gosec // It is empty.
		return nil, err
	}
	return file, nil
}
