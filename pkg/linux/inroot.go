package linux

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// OpenRoot opens the root directory of the process as a handle: what lies below
// is what the process sees, its own mounts included, and no namespace is entered.
func (p *Process) OpenRoot() (*File, error) {
	return OpenDir(fmt.Sprintf("/proc/%d/root", p.pid))
}

// OpenDirBelow opens the directory at path below root as a handle, as a process
// whose root that is would find it. It fails with ELOOP where a link is on the
// way: one that is planted in a container must lead nowhere, least of all to the
// host (openat2(2)).
func OpenDirBelow(root Descriptor, path string) (*File, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		// EAGAIN: the tree was renamed meanwhile (openat2(2)).
		fd, err := unix.Openat2(int(root.Fd()), path, &how)
		switch err { //nolint:errorlint // A raw errno, straight from the system call.
		case nil:
			return &File{fd, entry(root, path)}, nil
		case unix.EAGAIN, unix.EINTR:
		default:
			return nil, &os.PathError{Op: "openat2", Path: entry(root, path), Err: err}
		}
	}
}

// MakeBlockNode makes a node for a block device in dir, that nobody may open yet:
// its mode is 0, whatever the umask. It fails with EEXIST where anything of that
// name exists, and with EROFS where dir cannot be written.
func MakeBlockNode(dir Descriptor, name string, number DeviceNumber) error {
	device := unix.Mkdev(number.Major, number.Minor)
	if err := unix.Mknodat(int(dir.Fd()), name, unix.S_IFBLK, int(device)); err != nil { //nolint:gosec // Linux has 32 bits of it.
		return &os.PathError{Op: "mknod", Path: entry(dir, name), Err: err}
	}
	return nil
}

// SetOwner changes the owner, and then the mode, of the very file behind a handle
// (O_PATH), whatever has become of its name.
func SetOwner(handle Descriptor, uid, gid, mode uint32) error {
	if err := unix.Fchownat(int(handle.Fd()), "", int(uid), int(gid), unix.AT_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "chown", Path: handle.Name(), Err: err}
	}
	if err := unix.Chmod(descriptorPath(handle), mode); err != nil {
		return &os.PathError{Op: "chmod", Path: handle.Name(), Err: err}
	}
	return nil
}

// MountFlags say how a filesystem may be used at a place (statfs(2), f_flags).
type MountFlags struct {
	// ReadOnly says that nothing can be made there.
	ReadOnly bool
	// NoDevices says that device nodes there cannot be opened.
	NoDevices bool
}

// FlagsOf tells how the filesystem may be used where a handle is.
func FlagsOf(handle Descriptor) (MountFlags, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(handle.Fd()), &st); err != nil {
		return MountFlags{}, &os.PathError{Op: "statfs", Path: handle.Name(), Err: err}
	}
	return MountFlags{ReadOnly: st.Flags&unix.ST_RDONLY != 0, NoDevices: st.Flags&unix.ST_NODEV != 0}, nil
}

// CreateFileAs makes an empty file in dir as the user and group, which a
// filesystem of another user namespace must know: it refuses all others with
// EOVERFLOW. It fails with EEXIST where anything of that name exists.
func CreateFileAs(dir Descriptor, name string, uid, gid uint32) error {
	return onOwnThread(func() error {
		// Of this thread alone, and it ends with f (setfsuid(2)). They do not say
		// whether they failed.
		if _, err := unix.SetfsgidRetGid(int(gid)); err != nil {
			return os.NewSyscallError("setfsgid", err)
		}
		if _, err := unix.SetfsuidRetUid(int(uid)); err != nil {
			return os.NewSyscallError("setfsuid", err)
		}
		return CreateFile(dir, name)
	})
}

// onOwnThread runs f on a thread that ends with it, so that what f changes of the
// thread is nobody else's.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Not unlocked after f: the runtime ends the thread with the goroutine.
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread does not end, and stands for the process in
			// /proc/self. While it is kept here, f gets another.
			defer runtime.UnlockOSThread()
			done <- onOwnThread(f)
			return
		}
		done <- f()
	}()
	return <-done
}
