package linux

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// BindFile mounts the file behind the handle source on the file behind the
// handle target, both O_PATH. What the handles refer to is what is mounted,
// whatever their paths lead to by now.
//
// The mount is read-only, nosuid and noexec. For a device node that concerns
// the node's mode, owner and times, which through a bind mount are those of the
// host's own node; it does not keep anybody from writing to the device
// (may_open in the kernel's fs/namei.c).
//
// The mount leaves the peer group of source before it is attached: a mount that
// somebody stacks on target later must not appear on the host's /dev as well.
//
// Kernels before 5.12 lack mount_setattr(2); there mount(2) does the same,
// except for the peer group. Errors: ENOENT where target was removed meanwhile.
func BindFile(source, target Descriptor) error {
	err := bindDetached(source, target)
	// Container runtimes older than the calls deny them with EPERM.
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		return bindByPath(source, target)
	}
	return err
}

// bindDetached prepares the mount before anybody can see it.
func bindDetached(source, target Descriptor) error {
	tree, err := unix.OpenTree(int(source.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(tree) //nolint:errcheck // Nothing was written; an unattached mount goes with its descriptor.
	attr := unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC,
		Propagation: unix.MS_PRIVATE,
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return os.NewSyscallError("mount_setattr", err)
	}
	err = unix.MoveMount(tree, "", int(target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	return os.NewSyscallError("move_mount", err)
}

// bindByPath is the way of kernels before 5.12. A mount made by mount(2) takes
// its attributes in a second call only.
func bindByPath(source, target Descriptor) error {
	from, to := descriptorPath(source), descriptorPath(target)
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	// The path of the handle, since the handle still refers to what lies below
	// the new mount.
	const attributes = unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NOEXEC
	return os.NewSyscallError("remount", unix.Mount("", target.Name(), "", attributes, ""))
}

// Unmount removes the topmost mount from the entry of dir. Without lazy it
// fails with EBUSY while the mount is in use; with lazy it takes the mount out
// of sight at once and lets the kernel end it after its last user
// (umount2(2), MNT_DETACH).
func Unmount(dir Descriptor, name string, lazy bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	if err := unix.Unmount(descriptorPath(dir)+"/"+name, flags); err != nil {
		return &os.PathError{Op: "umount2", Path: entry(dir, name), Err: err}
	}
	return nil
}
