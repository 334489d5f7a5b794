package linux

import (
	"os"

	"golang.org/x/sys/unix"
)

// BlockNodeTree makes a node for a block device in a filesystem of its own, which
// belongs to this user namespace, and returns the node as a tree of one file that
// is mounted nowhere (open_tree(2)). In a filesystem of another user namespace no
// device can be opened (SB_I_NODEV in the kernel's fs/super.c); in this one, it
// can, wherever it is mounted.
func BlockNodeTree(number DeviceNumber, uid, gid, mode uint32) (*File, error) {
	context, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(context) //nolint:errcheck // Nothing was written.
	if err := unix.FsconfigCreate(context); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	mount, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	filesystem := &File{mount, "a filesystem for one node"}
	defer filesystem.Close()
	const name = "device"
	if err := MakeBlockNode(filesystem, name, number); err != nil {
		return nil, err
	}
	node, err := OpenPathAt(filesystem, name)
	if err != nil {
		return nil, err
	}
	defer node.Close()
	if err := SetOwner(node, uid, gid, mode); err != nil {
		return nil, err
	}
	tree, err := unix.OpenTree(mount, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("open_tree", err)
	}
	return &File{tree, "the node of device " + number.String()}, nil
}

// MountTree mounts a tree on the file behind the handle target, in the mount
// namespace of the process, which sees the file there.
func (p *Process) MountTree(tree, target Descriptor) error {
	return p.inMountNamespace(func() error {
		err := unix.MoveMount(int(tree.Fd()), "", int(target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
		return os.NewSyscallError("move_mount", err)
	})
}

// UnmountTree takes the topmost mount from the entry of dir in the mount
// namespace of the process; what is open of it stays usable (MNT_DETACH).
func (p *Process) UnmountTree(dir Descriptor, name string) error {
	return p.inMountNamespace(func() error {
		if err := unix.Fchdir(int(dir.Fd())); err != nil {
			return &os.PathError{Op: "chdir", Path: dir.Name(), Err: err}
		}
		if err := unix.Unmount(name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return &os.PathError{Op: "umount2", Path: entry(dir, name), Err: err}
		}
		return nil
	})
}

// inMountNamespace runs f in the mount namespace of the process. The paths of f,
// /proc among them, are those of the container: it works with descriptors. It
// fails with ESRCH where the process has ended, and with EINVAL before Linux 5.8.
func (p *Process) inMountNamespace(f func() error) error {
	return onOwnThread(func() error {
		// The root and the working directory, which setns changes, are shared by
		// all threads until then.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		if err := unix.Setns(p.fd, unix.CLONE_NEWNS); err != nil {
			return os.NewSyscallError("setns", err)
		}
		return f()
	})
}
