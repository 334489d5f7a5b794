package linux

import (
	"bytes"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// ReadFileAt returns the text of a file in dir, as the kernel has them.
func ReadFileAt(dir Descriptor, name string) (string, error) {
	fd, err := openAt(int(dir.Fd()), name, entry(dir, name), unix.O_RDONLY|unix.O_NOFOLLOW)
	if err != nil {
		return "", err
	}
	defer fd.Close()
	return fd.readAll()
}

// WriteFileAt writes text into a file in dir by one write, as the kernel's files
// want it.
func WriteFileAt(dir Descriptor, name, text string) error {
	fd, err := openAt(int(dir.Fd()), name, entry(dir, name), unix.O_WRONLY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer fd.Close()
	if _, err := ignoringEINTR(func() (int, error) { return unix.Write(fd.fd, []byte(text)) }); err != nil {
		return &os.PathError{Op: "write", Path: fd.name, Err: err}
	}
	return nil
}

// SetAttribute sets an extended attribute of an open file (xattr(7)).
func SetAttribute(file Descriptor, name, value string) error {
	if err := unix.Setxattr(descriptorPath(file), name, []byte(value), 0); err != nil {
		return &os.PathError{Op: "setxattr", Path: file.Name(), Err: err}
	}
	return nil
}

// RemoveAttribute removes an extended attribute of an open file; none is no error.
func RemoveAttribute(file Descriptor, name string) error {
	err := unix.Removexattr(descriptorPath(file), name)
	if err != nil && !errors.Is(err, unix.ENODATA) {
		return &os.PathError{Op: "removexattr", Path: file.Name(), Err: err}
	}
	return nil
}

// Attribute returns an extended attribute of an open file. It fails with ERANGE
// where that is longer than 1024 bytes.
func Attribute(file Descriptor, name string) (value string, found bool, err error) {
	buffer := make([]byte, 1024)
	n, err := unix.Getxattr(descriptorPath(file), name, buffer)
	if errors.Is(err, unix.ENODATA) {
		return "", false, nil
	}
	if err != nil {
		return "", false, &os.PathError{Op: "getxattr", Path: file.Name(), Err: err}
	}
	return string(buffer[:n]), true, nil
}

// Attributes returns the names of the extended attributes of the file at a path.
func Attributes(path string) ([]string, error) {
	for {
		size, err := unix.Llistxattr(path, nil)
		if err != nil {
			return nil, &os.PathError{Op: "listxattr", Path: path, Err: err}
		}
		if size == 0 {
			return nil, nil
		}
		buffer := make([]byte, size)
		size, err = unix.Llistxattr(path, buffer)
		if errors.Is(err, unix.ERANGE) {
			continue // There are more by now.
		}
		if err != nil {
			return nil, &os.PathError{Op: "listxattr", Path: path, Err: err}
		}
		var names []string
		for name := range bytes.SplitSeq(bytes.TrimSuffix(buffer[:size], []byte{0}), []byte{0}) {
			names = append(names, string(name))
		}
		return names, nil
	}
}

// Directories opens the directories in dir, which the caller closes. What is removed
// meanwhile is left out.
func Directories(dir Descriptor) ([]*os.File, error) {
	listed, err := os.Open(descriptorPath(dir))
	if err != nil {
		return nil, err
	}
	defer listed.Close() //nolint:errcheck // Nothing was written.
	entries, err := listed.ReadDir(-1)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, &os.PathError{Op: "readdir", Path: dir.Name(), Err: err}
	}
	var found []*os.File
	for _, one := range entries {
		if !one.IsDir() {
			continue
		}
		fd, err := unix.Openat(int(dir.Fd()), one.Name(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			for _, other := range found {
				other.Close() //nolint:errcheck,gosec // Nothing was written.
			}
			return nil, &os.PathError{Op: "openat", Path: entry(dir, one.Name()), Err: err}
		}
		found = append(found, os.NewFile(uintptr(fd), entry(dir, one.Name())))
	}
	return found, nil
}
