package linux

import (
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// DeviceNumber is the number by which the kernel knows a device.
type DeviceNumber struct {
	Major, Minor uint32
}

// String returns MAJOR:MINOR, the name of the device below /sys/dev/block.
func (n DeviceNumber) String() string {
	return fmt.Sprintf("%d:%d", n.Major, n.Minor)
}

// ParseDeviceNumber reads MAJOR:MINOR.
func ParseDeviceNumber(text string) (DeviceNumber, error) {
	majorText, minorText, _ := strings.Cut(text, ":")
	major, err := strconv.ParseUint(majorText, 10, 32)
	if err != nil {
		return DeviceNumber{}, fmt.Errorf("device number %q: %w", text, err)
	}
	minor, err := strconv.ParseUint(minorText, 10, 32)
	if err != nil {
		return DeviceNumber{}, fmt.Errorf("device number %q: %w", text, err)
	}
	return DeviceNumber{uint32(major), uint32(minor)}, nil
}

// Descriptor is an open file, such as *File or *os.File. It must stay open during
// a call.
type Descriptor interface {
	// Fd is the number of the descriptor.
	Fd() uintptr
	// Name is the path that the file was opened by, for messages.
	Name() string
}

// File is an open file that is not read from or written to. In place of os.File
// it spares the system calls by which that one finds out how to wait for data:
// a fifth of those of a publish. It is not closed by itself.
type File struct {
	fd   int
	name string
}

// Fd is the number of the descriptor.
func (f *File) Fd() uintptr { return uintptr(f.fd) }

// Name is the path that the file was opened by.
func (f *File) Name() string { return f.name }

// Close closes the file. There is nothing that could be lost, so it has no error.
func (f *File) Close() {
	unix.Close(f.fd) //nolint:errcheck,gosec // Linux closes it in any case (close(2)).
	// The number is soon another file's.
	f.fd = -1
}

// FileInfo is what statx(2) tells of a file.
type FileInfo struct {
	// Type is the type of the file: 0 for a regular file, fs.ModeDir,
	// fs.ModeSymlink, fs.ModeDevice for a block device,
	// fs.ModeDevice|fs.ModeCharDevice, fs.ModeNamedPipe or fs.ModeSocket.
	Type fs.FileMode
	// Device is the number of a block or character device.
	Device DeviceNumber
	// MountRoot says that something is mounted here.
	MountRoot bool
	// Mount names the mount that the file was reached by, among those there are now; 0
	// before Linux 5.8.
	Mount uint64
	// Size is the length of a regular file in bytes.
	Size uint64
	// Allocated is how many bytes are stored for a regular file. What it shares
	// with others counts for each.
	Allocated uint64
	// ID names the file.
	ID FileID
}

// IsBlockDevice reports whether the file is a block device node.
func (i FileInfo) IsBlockDevice() bool { return i.Type == fs.ModeDevice }

// OpenPath opens path as a handle (O_PATH): the file itself is not opened, so
// that no device is touched. Links are followed.
func OpenPath(path string) (*File, error) {
	return openAt(unix.AT_FDCWD, path, path, unix.O_PATH)
}

// OpenDir opens the directory at path as a handle (O_PATH). Links are followed.
func OpenDir(path string) (*File, error) {
	return openAt(unix.AT_FDCWD, path, path, unix.O_PATH|unix.O_DIRECTORY)
}

// CreateFile makes an empty regular file in dir, readable by its owner only,
// and fails with EEXIST where anything of that name exists.
func CreateFile(dir Descriptor, name string) error {
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Openat(int(dir.Fd()), name, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_WRONLY, 0o600)
	})
	if err != nil {
		return &os.PathError{Op: "create", Path: entry(dir, name), Err: err}
	}
	return os.NewSyscallError("close", unix.Close(fd))
}

// OpenPathAt opens the entry of dir as a handle (O_PATH) and does not follow it
// where it is a link.
func OpenPathAt(dir Descriptor, name string) (*File, error) {
	return openAt(int(dir.Fd()), name, entry(dir, name), unix.O_PATH|unix.O_NOFOLLOW)
}

// OpenDeviceAt opens the entry of dir for reading, which must be a device node,
// and does not follow it where it is a link.
func OpenDeviceAt(dir Descriptor, name string) (*File, error) {
	return openAt(int(dir.Fd()), name, entry(dir, name), unix.O_RDONLY|unix.O_NOFOLLOW)
}

// RemoveFile removes the entry of dir, which must not be a directory.
func RemoveFile(dir Descriptor, name string) error {
	if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil {
		return &os.PathError{Op: "unlink", Path: entry(dir, name), Err: err}
	}
	return nil
}

// Reopen opens the file behind a handle for reading. With exclusive, a block
// device is claimed for as long as the descriptor is open, and the call fails
// with EBUSY while anything else has claimed it, the disk that it is a part of,
// or a partition of it: a mount, swap, device-mapper, RAID (open(2), O_EXCL;
// bd_prepare_to_claim in the kernel's block/bdev.c).
func Reopen(handle Descriptor, exclusive bool) (*File, error) {
	flags := unix.O_RDONLY
	if exclusive {
		flags |= unix.O_EXCL
	}
	return openAt(unix.AT_FDCWD, descriptorPath(handle), handle.Name(), flags)
}

// Stat tells what a handle refers to.
func Stat(handle Descriptor) (FileInfo, error) {
	info, err := statx(int(handle.Fd()), "", unix.AT_EMPTY_PATH)
	if err != nil {
		return FileInfo{}, &os.PathError{Op: "statx", Path: handle.Name(), Err: err}
	}
	return info, nil
}

// StatPath tells what is at a path, and follows it where it is a link.
func StatPath(path string) (FileInfo, error) {
	info, err := statx(unix.AT_FDCWD, path, 0)
	if err != nil {
		return FileInfo{}, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	return info, nil
}

// StatAt tells what the entry of dir is, without following it where it is a link.
func StatAt(dir Descriptor, name string) (FileInfo, error) {
	info, err := statx(int(dir.Fd()), name, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return FileInfo{}, &os.PathError{Op: "statx", Path: entry(dir, name), Err: err}
	}
	return info, nil
}

func statx(dirfd int, name string, flags int) (FileInfo, error) {
	var st unix.Statx_t
	const mask = unix.STATX_TYPE | unix.STATX_SIZE | unix.STATX_BLOCKS | unix.STATX_INO | unix.STATX_MNT_ID
	if err := unix.Statx(dirfd, name, flags|unix.AT_NO_AUTOMOUNT, mask, &st); err != nil {
		return FileInfo{}, err
	}
	info := FileInfo{
		Type:      fileType(uint32(st.Mode)),
		Device:    DeviceNumber{st.Rdev_major, st.Rdev_minor},
		MountRoot: st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0,
		Mount:     st.Mnt_id,
		Size:      st.Size,
		Allocated: st.Blocks * 512, // stat(2): whatever the filesystem's own unit is.
		ID:        FileID{DeviceNumber{st.Dev_major, st.Dev_minor}, st.Ino},
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		// Before Linux 5.8. A device node below a target can only be a mount
		// from the kernel's device filesystem, whose device differs from that
		// of the directory that holds the target.
		var parent unix.Statx_t
		if name == "" {
			return info, nil
		}
		if err := unix.Statx(dirfd, "", unix.AT_EMPTY_PATH, unix.STATX_TYPE, &parent); err != nil {
			return FileInfo{}, err
		}
		info.MountRoot = st.Dev_major != parent.Dev_major || st.Dev_minor != parent.Dev_minor
	}
	return info, nil
}

// ReadNames returns the names in a directory in no order.
func ReadNames(path string) ([]string, error) {
	dir, err := openAt(unix.AT_FDCWD, path, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var names []string
	buffer := make([]byte, 2<<10)
	for {
		n, err := ignoringEINTR(func() (int, error) { return unix.ReadDirent(dir.fd, buffer) })
		if err != nil {
			return nil, &os.PathError{Op: "getdents64", Path: path, Err: err}
		}
		if n == 0 {
			return names, nil
		}
		_, _, names = unix.ParseDirent(buffer[:n], -1, names)
	}
}

// ReadFile returns the text of a file of the kernel's (sysfs, procfs). Unlike os.ReadFile it
// does not ask to be told when there is more to read, which takes half of the time there.
func ReadFile(path string) (string, error) {
	file, err := openAt(unix.AT_FDCWD, path, path, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer file.Close()
	return file.readAll()
}

func (f *File) readAll() (string, error) {
	var text []byte
	buffer := make([]byte, 4096)
	for {
		n, err := ignoringEINTR(func() (int, error) { return unix.Read(f.fd, buffer) })
		if err != nil {
			return "", &os.PathError{Op: "read", Path: f.name, Err: err}
		}
		if n == 0 {
			return string(text), nil
		}
		text = append(text, buffer[:n]...)
	}
}

// ReadLink returns the text of a symbolic link.
func ReadLink(path string) (string, error) {
	// Most texts fit the first time; PATH_MAX bounds them all.
	for size := 512; ; size = unix.PathMax {
		buffer := make([]byte, size)
		n, err := unix.Readlink(path, buffer)
		if err != nil {
			return "", &os.PathError{Op: "readlink", Path: path, Err: err}
		}
		if n < size || size == unix.PathMax {
			return string(buffer[:n]), nil
		}
	}
}

func fileType(mode uint32) fs.FileMode {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return fs.ModeDir
	case unix.S_IFLNK:
		return fs.ModeSymlink
	case unix.S_IFBLK:
		return fs.ModeDevice
	case unix.S_IFCHR:
		return fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFIFO:
		return fs.ModeNamedPipe
	case unix.S_IFSOCK:
		return fs.ModeSocket
	default:
		return 0
	}
}

func openAt(dirfd int, name, label string, flags int) (*File, error) {
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Openat(dirfd, name, flags|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: label, Err: err}
	}
	return &File{fd, label}, nil
}

// ignoringEINTR repeats a call that a signal interrupted: the Go runtime
// interrupts its own threads to preempt goroutines.
func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR { //nolint:errorlint // A raw errno, straight from the system call.
			return n, err
		}
	}
}

// descriptorPath names the file behind a descriptor, whatever has become of the
// path it was opened by (proc_pid_fd(5)).
func descriptorPath(file Descriptor) string {
	return "/proc/self/fd/" + strconv.Itoa(int(file.Fd()))
}

func entry(dir Descriptor, name string) string { return dir.Name() + "/" + name }

// TypeName says in words what the type of a file is.
func TypeName(fileType fs.FileMode) string {
	switch fileType {
	case 0:
		return "a regular file"
	case fs.ModeDir:
		return "a directory"
	case fs.ModeSymlink:
		return "a symbolic link"
	case fs.ModeDevice:
		return "a block device"
	case fs.ModeDevice | fs.ModeCharDevice:
		return "a character device"
	case fs.ModeNamedPipe:
		return "a named pipe"
	case fs.ModeSocket:
		return "a socket"
	default:
		return "a file of type " + fileType.String()
	}
}
