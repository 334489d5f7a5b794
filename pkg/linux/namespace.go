package linux

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// BlockNodeTree makes a node for a block device in a filesystem of its own, which
// belongs to this user namespace, and returns the node as a tree of one file that
// is mounted nowhere (open_tree(2)). In a filesystem of another user namespace no
// device can be opened (SB_I_NODEV in the kernel's fs/super.c); in this one, it
// can, wherever it is mounted.
func BlockNodeTree(number DeviceNumber, uid, gid, mode uint32) (*File, error) {
	tree, err := blockNodeTree(treeOf, number, uid, gid, mode)
	// Before Linux 6.15, no tree is taken out of a filesystem that is mounted nowhere
	// (__do_loopback in the kernel's fs/namespace.c).
	if errors.Is(err, unix.EINVAL) {
		return blockNodeTree(treeOfMounted, number, uid, gid, mode)
	}
	return tree, err
}

// blockNodeTree makes the node, and takes it out of its filesystem by a function.
func blockNodeTree(take func(Descriptor, string) (int, error), number DeviceNumber, uid, gid, mode uint32) (*File, error) {
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
	tree, err := take(filesystem, name)
	if err != nil {
		return nil, err
	}
	return &File{tree, "the node of device " + number.String()}, nil
}

func treeOf(filesystem Descriptor, name string) (int, error) {
	tree, err := unix.OpenTree(int(filesystem.Fd()), name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	return tree, os.NewSyscallError("open_tree", err)
}

// treeOfMounted mounts the filesystem where nobody sees it, in a mount namespace that
// ends with the call, and takes the tree from there.
func treeOfMounted(filesystem Descriptor, name string) (tree int, err error) {
	err = onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		// What is mounted here must not be mounted in the namespace that this one is
		// a copy of as well.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return os.NewSyscallError("mount", err)
		}
		if err := unix.MoveMount(int(filesystem.Fd()), "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return os.NewSyscallError("move_mount", err)
		}
		tree, err = treeOf(filesystem, name)
		return err
	})
	return tree, err
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
